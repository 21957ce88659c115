"""The command `rabbit2docker`."""

from rabbit2docker.cli.app import main

__all__ = ["main"]
