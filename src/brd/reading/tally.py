"""Counts of many different strings in bounded memory: how many there are, how many come twice, which come most."""

import hashlib
import heapq
from collections import Counter


class Tally:
    """Exact while there are at most ``room`` different strings; estimates beyond.

    How many different ones there are is then told from those with the lowest hashes (a sample that does not depend on
    order; the standard error is 1 / sqrt(room / 2) of the figure at most), and counts of the commonest may be too low
    by 1 / room of all (Misra and Gries 1982).
    """

    def __init__(self, room: int) -> None:
        self.total = 0
        self._room = room
        # Strings whose hash ends in so many zero bits are counted by hash, the others are not.
        self._zeros = 0
        self._sample: dict[int, int] = {}
        self._commonest: Counter[str] = Counter()

    def add(self, text: str) -> None:
        self.total += 1
        number = text_hash(text)
        if self._has_place(number):
            self._sample[number] = self._sample.get(number, 0) + 1
            while len(self._sample) > self._room:
                self._zeros += 1
                self._sample = {n: count for n, count in self._sample.items() if self._has_place(n)}
        self._commonest[text] += 1
        if len(self._commonest) > 2 * self._room:
            # Taking the same from all leaves at most `room` of them, and takes from no string more than its share.
            least = heapq.nlargest(self._room + 1, self._commonest.values())[-1]
            self._commonest = Counter({t: n - least for t, n in self._commonest.items() if n > least})

    def _has_place(self, number: int) -> bool:
        return number & ((1 << self._zeros) - 1) == 0

    @property
    def exact(self) -> bool:
        return self._zeros == 0

    @property
    def distinct(self) -> int:
        """How many different strings there are."""
        return len(self._sample) << self._zeros

    @property
    def shared(self) -> int:
        """How many of all strings came more than once."""
        once = sum(count == 1 for count in self._sample.values()) << self._zeros
        return max(self.total - once, 0)

    def commonest(self, most: int, least: int = 1) -> list[tuple[str, int]]:
        """The commonest strings with their counts, of those that came at least so often."""
        return [(text, n) for text, n in self._commonest.most_common(most) if n >= least]


def text_hash(text: str) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
