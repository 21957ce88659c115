"""The consumer process of the fault tests serves here, too."""

from tests.faults.conftest import make_consumer

__all__ = ["make_consumer"]
