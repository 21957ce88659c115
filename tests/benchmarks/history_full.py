"""A million events in 5 GB: `python -m tests.benchmarks history`."""

from tests.benchmarks import history
from tests.benchmarks.measuring import Report


async def measure() -> Report:
    """Measure reading at full size."""
    return await history.measure(5000, name="history_full")
