"""Attempts as detached processes beside a Docker engine on the same machine."""
