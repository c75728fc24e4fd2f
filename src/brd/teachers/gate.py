"""How many requests a server bears at once, found by trying."""

import asyncio
import time
from collections import deque


class Gate:
    """How many requests may be under way: one at first, twice as many after each round of answers, until the server
    shows that it has too much; then half as many, and one more a round. After an outage the doubling goes on up to
    where it was going well before (what TCP does)."""

    def __init__(self, most: int) -> None:
        self.limit = 1.0
        self._most, self._under_way = most, 0
        self._well, self._answered_since_cut = float(most), True
        self._last_cut = self._closed_until = -1.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, first: bool = False) -> None:
        """Wait for one's turn, or to be the next one; who has been let in has to ``leave``."""
        if self._under_way < int(self.limit):
            self._under_way += 1
        else:
            place = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if first else self._waiting.append)(place)
            try:
                await place
            except asyncio.CancelledError:
                if not place.cancelled():
                    self.leave()
                raise
        try:
            while (wait := self._closed_until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        self._under_way -= 1
        # Room is handed over, so that nobody who comes later is faster.
        while self._waiting and self._under_way < int(self.limit):
            if not (place := self._waiting.popleft()).done():
                self._under_way += 1
                place.set_result(None)

    def answered(self) -> None:
        self._answered_since_cut = True
        self.limit = min(self._most, self.limit + (1.0 if self.limit < self._well else 1.0 / self.limit))

    def overloaded(self, began: float) -> None:
        """A request that ``began`` then was too much. Those that began before the last cut tell nothing new."""
        if began < self._last_cut:
            return
        self._last_cut = time.monotonic()
        self.limit = max(1.0, self.limit / 2)
        if self._answered_since_cut:
            self._well, self._answered_since_cut = self.limit, False

    def close_for(self, seconds: float) -> None:
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)
