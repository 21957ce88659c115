"""The command `rabbit2docker`.

Modules with commands import only typer and constants at the top. Everything else is imported inside the functions that
need it, so that help and names cost no more than they must.
"""

from rabbit2docker.cli.app import main

__all__ = ["main"]
