"""Small stand-ins for ports, for unit tests only."""
