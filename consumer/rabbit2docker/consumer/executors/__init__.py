"""Executors run attempts. `base` is their common interface; each implementation is a package beside it."""
