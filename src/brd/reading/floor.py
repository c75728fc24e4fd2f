"""An alarm while reading: too few of the last answers pass verification, so reading stops before more is paid for."""

from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path

from brd.errors import BrdError
from brd.reading.store import Reading
from brd.sections.reading import Reading as Settings


class Floor:
    """Watches one behavior: the verified share of its last ``reading.floor_window`` answers, against
    ``reading.floor``. Never alarmed without a floor, or before there are so many answers.

    The window lives on from one call to the next: it begins with the answers that were there ``before``.
    """

    def __init__(self, settings: Settings, behavior: str, run: Path, before: Iterable[Reading] = ()) -> None:
        self._floor, self._behavior, self._run = settings.floor, behavior, run
        # Why each answer failed; empty where it did not.
        self._reasons: deque[str] = deque(maxlen=settings.floor_window)
        self._verified = 0
        for reading in before:
            self._add(reading)
        self._check()

    def saw(self, reading: Reading) -> None:
        """Raises BrdError when this reading, which is stored already, brings the share below the floor."""
        if self._floor is not None:
            self._add(reading)
            self._check()

    def _add(self, reading: Reading) -> None:
        if len(self._reasons) == self._reasons.maxlen:
            self._verified -= not self._reasons[0]
        self._reasons.append("" if reading.verdict == "verified" else reading.reason or reading.verdict)
        self._verified += not self._reasons[-1]

    def _check(self) -> None:
        n = len(self._reasons)
        if self._floor is None or n < (self._reasons.maxlen or 0) or self._verified / n >= self._floor:
            return
        [(reason, times)] = Counter(filter(None, self._reasons)).most_common(1)
        raise BrdError(
            f"reading.floor: {self._behavior}: {100 * self._verified / n:.1f} % of its last {n} answers were verified, "
            f"the floor is {100 * self._floor:g} %; commonest reason: {reason} ({times} of {n}); all answers are kept: "
            f"look at them with `brd audit {self._run}`, then give the same command another teacher, exemplars or "
            "text, or let it go on with a lower --set reading.floor=... (null: no floor)"
        )
