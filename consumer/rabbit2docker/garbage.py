"""Garbage collection of a long-lived service.

The default looks for cycles after every 700 new objects, and at all objects of the program now and then. A batch of log
lines is thousands of objects without cycles.
"""

import gc
from typing import Final

THRESHOLDS: Final = (20_000, 20, 50)
"""New objects before a collection, and collections of each generation before one of the next older."""


def collect_less_often() -> None:
    """Collect rarely, and never look at what exists now: modules, classes and settings stay until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
