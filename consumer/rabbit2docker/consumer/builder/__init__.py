"""The program of one attempt: where it is."""

from pathlib import Path
from typing import Final

BUILDER_PATH: Final = Path(__file__).with_name("builder.py")
"""One file, standard library only: run as it is by the local executor, mounted into build pods."""
