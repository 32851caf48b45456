"""The flows of Tandem, one module each."""
