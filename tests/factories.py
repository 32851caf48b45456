"""Makers of nouns and images for tests."""
