"""HTTP endpoints: each parses, calls one service and encodes."""
