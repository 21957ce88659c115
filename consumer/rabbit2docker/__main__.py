"""The command `rabbit2docker`, also as `python -m rabbit2docker`."""

import sys
from typing import Final

MISSING_EXTRA: Final = 78
"""Exit code for wrong settings, as in cli.exits, which may not be importable."""
CLI_PACKAGES: Final = {"aiohttp", "click", "pydantic_settings", "rich", "typer", "yaml"}


def main() -> None:
    """Run the command line, or explain which extra it needs."""
    try:
        from rabbit2docker.cli import main as run

        run()
    except ModuleNotFoundError as error:
        package = (error.name or "rabbit2docker").partition(".")[0]
        if package == "rabbit2docker":
            raise
        sys.stderr.write(f"Error: {_advice(package)}\n")
        sys.exit(MISSING_EXTRA)


def _advice(package: str) -> str:
    missing = f"this command needs the Python package {package}, which is not installed."
    if package in CLI_PACKAGES:
        return f"{missing} Install the extra of the command line: pip install 'rabbit2docker[cli]'."
    return (
        f"{missing} Install the extra of the service: pip install 'rabbit2docker[local]' for one machine, "
        "'rabbit2docker[kubernetes]' for a cluster, 'rabbit2docker[hub]' for a JupyterHub."
    )


if __name__ == "__main__":
    main()
