"""Predicted seconds of a run against those of teachers whose rules the planner does not know."""

from collections.abc import Callable
from pathlib import Path

import pytest

from brd.plan.asking import Asked, Call, sizes
from brd.plan.timing import InProcess, Slots, doubling, steps_of
from brd.sections.teacher import Teacher as Settings
from brd.teachers import shared_prefix
from plan.simulated import Sentence, batch, sentences, server


def split(count: int, at_once: int, seed: int) -> list[list[Sentence]]:
    drawn = iter(sentences(count, seed))
    return [[next(drawn) for _ in range(size)] for size in sizes(None, count, at_once)]


def call(asked: list[Sentence], ends: list[float]) -> Call:
    return [
        Asked("", 0, end, s.own, s.own, cached=0, new=s.new, counted=True, verified=True, retries=0)
        for s, end in zip(asked, ends, strict=True)
    ]


STEPS: dict[str, Callable[[int, int], float]] = {
    "bound by arithmetic": lambda decoding, joining: 0.005 + 0.0017 * (decoding + joining),
    "bound by memory when nearly empty": lambda decoding, joining: max(0.04, 0.0017 * (decoding + joining)),
    "an accelerator": lambda decoding, joining: 0.02 + 0.00002 * (decoding + joining),
}


@pytest.mark.parametrize("count", [380, 4000])
@pytest.mark.parametrize("most", [32, 128])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_teacher_in_this_process(step: Callable[[int, int], float], most: int, count: int) -> None:
    calls = {}
    for name, seed in (("ner", 1), ("qra", 2)):
        calls[name] = [call(asked, batch(asked, most, step, 1.0)) for asked in split(count, most, seed)]
    timing = InProcess(calls, most)
    for name in calls:
        actual = max(batch(sentences(count, 3), most, step, 1.0))
        assert timing.predict(name, count).seconds == pytest.approx(actual, rel=0.15)


SPEEDS: dict[str, Callable[[int], float]] = {
    "never full": lambda requests: 10.0 * requests,
    "full at once": lambda requests: 90.0,
    "gains little": lambda requests: 200.0 * requests / (4 + requests),
    "full at a third": lambda requests: min(10.0 * requests, 220.0),
}


@pytest.mark.parametrize("count", [380, 4000])
@pytest.mark.parametrize("most", [16, 64])
@pytest.mark.parametrize("speed", SPEEDS.values(), ids=SPEEDS)
def test_a_server_whose_limit_is_found_by_trying(speed: Callable[[int], float], most: int, count: int) -> None:
    limit = doubling(most)
    calls: dict[str, list[Call]] = {}
    done = 0
    for name, seed in (("ner", 1), ("qra", 2)):
        calls[name] = []
        for asked in split(count, most, seed):
            ends = server([s.new for s in asked], lambda n, before=done: limit(before + n), speed)
            calls[name].append(call(asked, ends))
            done += len(asked)
    timing = Slots(calls, limit, most, cold=False)
    work = [float(s.new) for s in sentences(2 * count, 3)]
    actual = max(server(work[:count], limit, speed)) + max(server(work[count:], lambda _: most, speed))
    predicted = timing.predict("ner", count).seconds + timing.predict("qra", count, count).seconds
    assert predicted == pytest.approx(actual, rel=0.15)


@pytest.mark.parametrize("count", [380, 4000])
@pytest.mark.parametrize("most", [8, 32])
@pytest.mark.parametrize("speed", [SPEEDS["full at once"], SPEEDS["gains little"]])
def test_slots_that_read_the_prefix_each_for_itself(speed: Callable[[int], float], most: int, count: int) -> None:
    """llama.cpp: after the first two sentences two slots are warm, after the first call all of them."""
    calls: dict[str, list[Call]] = {}
    for name, seed in (("ner", 1), ("qra", 2)):
        colds = (2, most - 2, 0)
        calls[name] = [
            call(asked, server([s.new for s in asked], lambda _: most, speed, 150.0, cold))
            for asked, cold in zip(split(count, most, seed), colds, strict=True)
        ]
    timing = Slots(calls, lambda _: most, most, cold=True)
    for name in calls:
        actual = max(server([s.new for s in sentences(count, 3)], lambda _: most, speed, 150.0, most))
        assert timing.predict(name, count).seconds == pytest.approx(actual, rel=0.15)


@pytest.mark.parametrize("most", [3, 16])
def test_the_steps_are_those_that_the_teacher_makes(most: int, tiny_model: Path) -> None:
    found = shared_prefix.load(Settings(model=str(tiny_model), dtype="float32", batch_size=most))
    prefix, words = "Once upon a time.\n", "the harbour was quiet and Lina opened her shop in Trieste at seven".split()
    suffixes = [" ".join(words[: 1 + n % len(words)]) * (1 + n % 7) for n in range(40)]
    answers = dict(found.answer(prefix, suffixes, stop=["e"], max_new_tokens=12))
    shared = found.count_tokens(prefix)
    rows = [(answers[n].prompt_tokens - shared, answers[n].new_tokens) for n in range(len(suffixes))]
    assert len({new for _, new in rows}) > 1
    assert found.stats.steps == steps_of(rows, most)
