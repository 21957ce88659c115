"""Free slots become prefetch of the request queues."""

from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.intake.capacity import split_prefetch
from rabbit2docker_schemas.routing import BULK_QUEUE, REQUESTS_QUEUE


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 20), st.integers(0, 10), st.booleans())
def test_prefetch_never_exceeds_the_free_slots_unless_all_is_quiet(
    free: int, limit: int, prefetch: int, reserved: int, is_quiet: bool
) -> None:
    free = min(free, limit)
    found = split_prefetch(free, limit=limit, prefetch=prefetch, reserved=reserved, is_quiet=is_quiet)
    assert all(0 <= amount <= prefetch for amount in found.values())
    assert sum(found.values()) <= free + (is_quiet and limit <= max(1, reserved))
    if free:
        assert found[REQUESTS_QUEUE], "interactive requests always get a free slot"


def test_bulk_gets_up_to_half_of_the_slots_that_are_not_reserved() -> None:
    assert split_prefetch(10, limit=10, prefetch=8, reserved=1) == {REQUESTS_QUEUE: 5, BULK_QUEUE: 5}
    assert split_prefetch(1, limit=10, prefetch=8, reserved=1) == {REQUESTS_QUEUE: 1, BULK_QUEUE: 0}


def test_bulk_gets_a_single_slot_when_no_interactive_request_waits() -> None:
    assert split_prefetch(1, limit=1, prefetch=8, reserved=1)[BULK_QUEUE] == 0
    assert split_prefetch(1, limit=1, prefetch=8, reserved=1, is_quiet=True)[BULK_QUEUE] == 1
    assert split_prefetch(0, limit=1, prefetch=8, reserved=1, is_quiet=True)[BULK_QUEUE] == 0
