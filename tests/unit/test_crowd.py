"""The viewers that load tests count with."""

from tests.support.crowd import Onlooker


async def test_a_frame_without_an_id_leaves_the_last_one_valid() -> None:
    viewer = Onlooker(lambda: None)
    viewer.data_received(b'data: {"phase": "waiting"}\n\n')
    assert (viewer.events, viewer.last_id) == (1, "")
    viewer.data_received(b'id: r:1.0.0\ndata: {"phase": "waiting"}\n\n')
    viewer.data_received(b':keepalive\n\nevent: queue\ndata: {"ahead": 3}\n\n')
    assert (viewer.events, viewer.last_id) == (3, "r:1.0.0")
