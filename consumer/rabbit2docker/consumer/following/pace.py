"""The pause of a follower between two batches of log lines, which decides how many lines share a message."""

import asyncio
import math
from typing import Final

SHORTEST_SECONDS: Final = 0.08
"""After the batch of a replica that publishes nothing else. A message costs all services together as much as several lines
in it: with 20 ms, a line of one build with 100 lines a second costs more than twice as much."""
LONGEST_SECONDS: Final = 0.25
EASY_MESSAGES: Final = 40
"""Messages a second that a replica publishes without longer pauses."""
MEMORY_SECONDS: Final = 1.0


class LogPace:
    """Pauses that grow with the rate of messages of all followers of a replica, and with the time that RabbitMQ takes.

    A line that comes after the pause leaves at once. Lines written during the pause make up the next batch. The pause grows
    with the root of the rate: four times as many busy builds wait twice as long, and send twice as many messages.
    """

    def __init__(self, longest: float = LONGEST_SECONDS) -> None:
        """Take the longest pause in seconds."""
        self._longest = longest
        self._rate = 0.0
        self._at = 0.0

    def pause_after(self, publishing_seconds: float) -> float:
        """Count a message that took so long to be confirmed; return the seconds to wait before the next of its build."""
        now = asyncio.get_running_loop().time()
        self._rate = self._rate * math.exp((self._at - now) / MEMORY_SECONDS) + 1 / MEMORY_SECONDS
        self._at = now
        crowded = SHORTEST_SECONDS * max(1.0, self._rate / EASY_MESSAGES)
        return min(self._longest, max(crowded, publishing_seconds))
