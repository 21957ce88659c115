"""Checks that `make lint` runs on the project's own texts and structure."""
