"""How long reading takes, from a few calls of the teacher: what comes once is kept apart from what each sentence takes.

A teacher in this process fills its batch anew as answers end, by rules that are known: a call takes so many steps and
has so many tokens go through the model. Calls of different sizes tell what a call, a step and a token cost.

Behind a server, or in llama.cpp's slots, so many requests are under way at once, and each takes longer the more there
are. From when answers came follows when each request was made and how many were under way with it, and so what the
others cost it; a simulation of the whole run then has its ramp, its steady state and its end.
"""

import heapq
import math
import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brd.plan.asking import Call
from brd.reading.reader import WINDOW

# Rounds of requests that are simulated; beyond, time grows with their number.
ROUNDS = 40
# With less than this share of what may be under way at once, the speed of a full teacher was not seen.
FULL = 0.7
# 95 % of a normal distribution.
_Z = 1.96

Limit = Callable[[int], int]
"""How many requests may be under way after so many answers."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, and the 95 % interval of what they may be."""

    seconds: float
    low: float
    high: float


class InProcess:
    """A teacher that fills its batch anew. ``calls`` are those of each behavior: a very small one, which bears what
    comes once in a process, and larger ones."""

    def __init__(self, calls: dict[str, list[Call]], batch: int) -> None:
        self._batch = batch
        self._rows = {name: [row for call in found for row in _rows(call)] for name, found in calls.items()}
        every = [call for found in calls.values() for call in found]
        # What the first of all took beyond the others' pace came once.
        told = every[1:] if len(every) > 2 else every
        self._costs = _costs([self._features(_rows(call)) for call in told], [_seconds(call) for call in told])
        self.start = max(0.0, _seconds(every[0]) - self._seconds(_rows(every[0])))
        left = [_seconds(call) / max(1e-9, self._seconds(_rows(call))) - 1 for call in told[-2:]]
        self._unsure = math.sqrt(statistics.fmean(x * x for x in left)) if len(told) > 3 else 0.0
        self.full = all(len(found[-1]) >= FULL * batch for found in calls.values())
        # Seconds a token, of the fullest calls.
        self._rates = {name: _seconds(c[-1]) / sum(map(sum, _rows(c[-1]))) for name, c in calls.items()}

    def predict(self, behavior: str, sentences: int, before: int = 0) -> Estimate:
        """Of so many sentences; ``before`` changes nothing here."""
        windows, rest = divmod(sentences, WINDOW)
        seconds = windows * self._of(behavior, WINDOW) + (self._of(behavior, rest) if rest else 0.0)
        error = _error_of_mean([own + new for own, new in self._rows[behavior]])
        off = _Z * math.hypot(error, self._unsure) * seconds
        high = seconds + off
        if not self.full:
            # Where steps were nearly empty, their tokens may have cost nothing yet; at most as much as all together.
            tokens = statistics.fmean(own + new for own, new in self._rows[behavior]) * sentences
            high = max(high, tokens * self._rates[behavior])
        return Estimate(seconds, max(0.0, seconds - off), high)

    def _of(self, behavior: str, sentences: int) -> float:
        rows, most = self._rows[behavior], ROUNDS * self._batch
        few = self._seconds([rows[n % len(rows)] for n in range(min(sentences, most))])
        if sentences <= most:
            return few
        half = self._seconds([rows[n % len(rows)] for n in range(most // 2)])
        return few + (few - half) / (most - most // 2) * (sentences - most)

    def _seconds(self, rows: Sequence[tuple[int, int]]) -> float:
        return sum(cost * count for cost, count in zip(self._costs, self._features(rows), strict=True))

    def _features(self, rows: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
        """One call, its steps, and the tokens that go through the model."""
        return 1.0, float(steps_of(rows, self._batch)), float(sum(own + new for own, new in rows))


def _seconds(call: Call) -> float:
    return max(asked.end for asked in call)


def _rows(call: Call) -> list[tuple[int, int]]:
    """Own and new tokens of each sentence."""
    return [(asked.own, asked.new) for asked in call]


def steps_of(rows: Sequence[tuple[int, int]], batch: int) -> int:
    """The steps of ``teachers.shared_prefix`` for sentences of (own tokens, new tokens)."""
    from brd.teachers.shared_prefix import JOINING_TOKENS

    waiting = deque(sorted(rows, key=lambda row: -row[0]))
    live: list[int] = []
    step = 0
    while waiting or live:
        step += 1
        room, joined = JOINING_TOKENS, 0
        while waiting and len(live) < batch:
            room -= waiting[0][0]
            if joined and room < 0:
                break
            joined += 1
            heapq.heappush(live, step + max(1, waiting.popleft()[1]) - 1)
        while live and live[0] <= step:
            heapq.heappop(live)
    return step


def _costs(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """What each feature costs, none of them less than nothing."""
    from scipy.optimize import nnls

    # Calls count by their shares: the small ones tell what a step costs.
    weights = [1 / math.sqrt(max(s, 1e-9)) for s in seconds]
    rows = [[w * x for x in row] for w, row in zip(weights, features, strict=True)]
    found, _ = nnls(rows, [w * s for w, s in zip(weights, seconds, strict=True)])
    return [float(cost) for cost in found]


class Slots:
    """A teacher with so many requests under way at once, at most ``most``. ``limit`` tells how many, after so many
    answers.

    ``cold`` says that each slot reads the prefix of a behavior for itself (llama.cpp), so that a behavior's first two
    calls are slower than all that come.
    """

    def __init__(self, calls: dict[str, list[Call]], limit: Limit, most: int, *, cold: bool) -> None:
        self._limit, self._most = limit, most
        self._costs: dict[str, list[float]] = {}
        # Of each sentence of the sample: new tokens, and how much longer it took than such a one does.
        self._sample: dict[str, list[tuple[int, float]]] = {}
        self._once: dict[str, float] = {}
        self._crowd, done = math.inf, 0
        for name, found in calls.items():
            before, seen = list[int](), list[tuple[float, int, float]]()
            for number, call in enumerate(found):
                before.append(done)
                if number == len(found) - 1 or (number and not cold):
                    seen += _replay(call, limit, done)
                done += len(call)
            times = [took for *_, took in seen]
            self._costs[name] = _costs([_request(crowd, new) for crowd, new, _ in seen], times)
            self._sample[name] = [(new, took / max(1e-9, self._takes(name, crowd, new))) for crowd, new, took in seen]
            self._crowd = min(self._crowd, max(crowd for crowd, *_ in seen))
            # Of a cold teacher the second call has nearly all slots read the prefix: so many times as they are more.
            head = 1 if cold and len(found) > 1 else 0
            call, first = found[head], sum(map(len, found[:head]))
            share = max(1, min(most - first, len(call))) / most if cold else 1.0
            self._once[name] = max(0.0, _seconds(call) - self._run(name, len(call), before[head])) / share
        self.start = 0.0
        self.full = self._crowd >= FULL * most

    def predict(self, behavior: str, sentences: int, before: int = 0) -> Estimate:
        """Of so many sentences, after ``before`` were answered by the same process."""
        if not sentences:
            return Estimate(0.0, 0.0, 0.0)
        seconds = self._once[behavior] + self._run(behavior, sentences, before)
        off = _Z * _error_of_mean(self._times(behavior, self._most)) * seconds
        low, high = seconds - off, seconds + off
        if not self.full:
            # More at once may help not at all, or in proportion.
            change = sum(self._times(behavior, self._crowd)) / max(1e-9, sum(self._times(behavior, self._most)))
            low = min(low, seconds * change)
            high = max(high, seconds * change * self._most / self._crowd)
        return Estimate(seconds, max(0.0, low), high)

    def _takes(self, behavior: str, crowd: float, new: float) -> float:
        return sum(cost * x for cost, x in zip(self._costs[behavior], _request(crowd, new), strict=True))

    def _times(self, behavior: str, crowd: float) -> list[float]:
        """What each sentence of the sample takes with so many under way."""
        return [self._takes(behavior, crowd, new) * luck for new, luck in self._sample[behavior]]

    def _run(self, behavior: str, sentences: int, before: int) -> float:
        sample = self._sample[behavior]
        simulated = min(sentences, ROUNDS * self._most)
        now, begun, done = 0.0, 0, 0
        running: list[float] = []
        while done < simulated:
            fresh = min(simulated - begun, max(0, self._limit(before + done) - len(running)))
            crowd = len(running) + fresh
            for _ in range(fresh):
                new, luck = sample[begun % len(sample)]
                heapq.heappush(running, now + self._takes(behavior, crowd, new) * luck)
                begun += 1
            now = heapq.heappop(running)
            done += 1
        return now + (sentences - simulated) * statistics.fmean(self._times(behavior, self._most)) / self._most


def _request(crowd: float, new: float) -> tuple[float, ...]:
    """What a request's time is made of, with so many under way and so many new tokens: itself, its tokens, the others,
    the others' tokens."""
    return 1.0, new, crowd, crowd * new


def doubling(most: int) -> Limit:
    """The limit of ``teachers.gate.Gate`` while nothing is too much: one more for every answer."""
    return lambda answers: min(most, 1 + answers)


def _replay(call: Call, limit: Limit, before: int) -> list[tuple[float, int, float]]:
    """Of each request how many were under way with it on average, its new tokens, and how long it took."""
    starts: list[float] = []
    running: list[float] = []
    ends, now, done = [asked.end for asked in call], 0.0, 0
    while len(starts) < len(ends):
        while len(starts) < len(ends) and len(running) < max(1, limit(before + done)):
            heapq.heappush(running, ends[len(starts)])
            starts.append(now)
        now = max(now, heapq.heappop(running))
        done += 1
    # The area under "how many are under way", up to each moment.
    moments = sorted([(s, 1) for s in starts] + [(e, -1) for e in ends])
    times, areas, at, area, under_way = [0.0], [0.0], 0.0, 0.0, 0
    counts = [0]
    for moment, change in moments:
        area += under_way * (moment - at)
        at, under_way = moment, under_way + change
        times.append(at)
        areas.append(area)
        counts.append(under_way)

    def up_to(moment: float) -> float:
        place = bisect_right(times, moment) - 1
        return areas[place] + counts[place] * (moment - times[place])

    return [
        ((up_to(end) - up_to(start)) / (end - start), asked.new, end - start)
        for start, end, asked in zip(starts, ends, call, strict=True)
        if end > start
    ] or [(1.0, 1, 1e-9)]


def _error_of_mean(values: Sequence[float]) -> float:
    """As a share of the mean."""
    if len(values) < 2 or not statistics.fmean(values):
        return 0.0
    return statistics.stdev(values) / math.sqrt(len(values)) / statistics.fmean(values)
