"""The builder: the program that runs one attempt."""

from pathlib import Path
from typing import Final

BUILDER_PATH: Final = Path(__file__).with_name("builder.py")
"""One file, standard library only: the local executor runs it as it is, build pods have it mounted."""
