"""Concrete stores, sources and executors behind the ports."""
