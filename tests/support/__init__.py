"""Shared parts of the tests: real services, a proxy that breaks connections, and waiting without guessing times."""
