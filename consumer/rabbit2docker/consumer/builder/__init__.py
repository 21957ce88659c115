"""The builder: the program that runs one attempt."""

import sys
from pathlib import Path
from typing import Final

BUILDER_PATH: Final = Path(__file__).with_name("builder.py")
"""One file, standard library only: the local executor runs it as it is, build pods have it mounted."""
BUILDER_COMMAND: Final = (
    # Isolated: the builder needs the standard library alone, and installed packages must not interfere.
    *(sys.executable, "-I", "-S", "-c"),
    # As a module: Python keeps the compiled form of modules only, and compiling takes longer than all else at its start.
    f"import sys; sys.path.append({str(BUILDER_PATH.parent)!r}); import builder; sys.exit(builder.main())",
)
"""How it is run on this machine; its arguments follow."""
