"""The age of what waits in a queue, without asking RabbitMQ for it."""

from datetime import UTC, datetime

from rabbit2docker import metrics
from rabbit2docker.amqp import queue_age
from rabbit2docker.amqp.queue_age import QueueAges
from rabbit2docker_schemas.routing import REQUESTS_QUEUE

Q = REQUESTS_QUEUE


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


def test_what_waits_came_after_what_was_taken_or_after_the_queue_was_empty() -> None:
    clock = Clock()
    ages = QueueAges(clock)
    assert ages.age(Q) == 0
    ages.note_taken(Q, at(clock.seconds - 50))
    assert ages.age(Q) == 0
    ages.note_waiting(Q, 3)
    assert ages.age(Q) == 50
    clock.seconds += 100
    assert ages.age(Q) == 150
    ages.note_taken(Q, at(clock.seconds - 20))
    ages.note_taken(Q, at(clock.seconds - 90))  # a redelivery
    ages.note_taken(Q, None)
    assert ages.age(Q) == 20
    ages.note_waiting(Q, 0)
    clock.seconds += 3600
    assert ages.age(Q) == 0
    ages.note_waiting(Q, 1)
    assert ages.age(Q) == 3600  # at most: it was empty an hour ago
    ages.note_taken(Q, at(clock.seconds + 7200))
    assert ages.age(Q) == 0


def test_a_queue_of_which_nothing_else_is_known_ages_from_its_first_check() -> None:
    clock = Clock()
    ages = QueueAges(clock)
    ages.note_waiting(Q, 1)
    clock.seconds += 5
    ages.note_waiting(Q, 2)
    assert ages.age(Q) == 5


def test_the_metric_is_computed_when_it_is_read() -> None:
    queue_age.QUEUE_AGES.expose()
    assert f'rabbit2docker_queue_age_seconds{{queue="{Q}"}}' in metrics.render().decode()
