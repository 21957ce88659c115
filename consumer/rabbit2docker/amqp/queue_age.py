"""The age of what waits in the queues of work, as far as deliveries and the checks of the topology show it."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Final

from rabbit2docker import metrics
from rabbit2docker.amqp.topology import WORK_QUEUES


class QueueAges:
    """The age of the oldest message in each queue, at most: it came after what was taken last, or after an empty queue.

    Nothing is asked for it. RabbitMQ gives the time of a waiting message to those alone who take it out of its queue.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """Start with queues that nothing is known of."""
        self._now = now
        self._came_after: dict[str, float] = {}
        self._is_empty: dict[str, bool] = {}

    def note_taken(self, queue: str, published: datetime | None) -> None:
        """Note a message that was taken. Its publisher's clock may be ahead, but not this one's."""
        if published is not None:
            moment = min(published.timestamp(), self._now())
            self._came_after[queue] = max(moment, self._came_after.get(queue, 0.0))

    def note_waiting(self, queue: str, count: int) -> None:
        """Note how many messages wait."""
        self._is_empty[queue] = not count
        if not count or queue not in self._came_after:
            self._came_after[queue] = self._now()

    def age(self, queue: str) -> float:
        """Return the seconds; 0 if nothing waited at the last check."""
        if self._is_empty.get(queue, True):
            return 0.0
        return max(0.0, self._now() - self._came_after[queue])

    def expose(self, queues: Iterable[str] = WORK_QUEUES) -> None:
        """Have the metric of these queues computed when it is read."""
        for queue in queues:
            metrics.QUEUE_AGE.labels(queue=queue).set_function(partial(self.age, queue))


QUEUE_AGES: Final = QueueAges()
QUEUE_AGES.expose()
