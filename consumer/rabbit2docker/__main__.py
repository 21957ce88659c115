"""The command `rabbit2docker`, also as `python -m rabbit2docker`."""

import sys
from typing import Final

MISSING_EXTRA: Final = 78
"""Exit code for wrong settings, as in cli.exits, which cannot be imported then."""


def main() -> None:
    """Run the command line, or explain which extra it needs."""
    try:
        from rabbit2docker.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "rabbit2docker").startswith("rabbit2docker"):
            raise
        sys.stderr.write(
            f"Error: the command rabbit2docker needs the Python package {error.name}, which is not installed. "
            "Install the extra of its command line: pip install 'rabbit2docker[cli]'.\n"
        )
        sys.exit(MISSING_EXTRA)
    run()


if __name__ == "__main__":
    main()
