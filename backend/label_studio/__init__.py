"""Label Studio: its wire format, its label configs and its API."""
