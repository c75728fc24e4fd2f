"""The alarm while reading: it stops in time, loses nothing, and changes nothing of what is read."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from scripted import Scripted, a_recipe, a_run

from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.reading.audit import audit as figures
from brd.reading.reader import read
from brd.recipe import Recipe, changed
from brd.run import RunFolder

BrdHere = Callable[..., CompletedProcess[str]]

GOOD = " none"
BAD = "Oslo, Bergen"


def alarmed(recipe: Recipe, run: Path, teacher: Scripted) -> str:
    with pytest.raises(BrdError) as caught:
        read(recipe, run, teacher)
    message = str(caught.value)
    assert "\n" not in message
    return message


def drifting(sentences: Iterable[str], good: int) -> Scripted:
    """A teacher that is sound for so many sentences."""
    order = {sentence: n for n, sentence in enumerate(sentences)}
    return Scripted(lambda _, sentence: GOOD if order[sentence] < good else BAD)


def test_reading_stops_when_too_few_of_the_last_answers_are_verified(tmp_path: Path) -> None:
    sentences = [f"Nothing happened on day {n}." for n in range(100)]
    recipe = a_recipe(tmp_path, sentences, behaviors=["ner"], floor=0.55, floor_window=20)
    run = tmp_path / "run" / "readings"
    teacher = drifting(sentences, good=50)
    message = alarmed(recipe, run, teacher)
    # 11 of the last 20 are 55 %: the tenth bad answer is the one too many.
    assert teacher.asked == 60
    assert message.startswith("reading.floor: ner: 50.0 % of its last 20 answers were verified, the floor is 55 %; ")
    assert "commonest reason: not of the form 'name (type: description); ...' (10 of 20)" in message
    assert f"brd audit {tmp_path / 'run'}" in message
    # The same command does not pay for more, another floor goes on from there, and none reads to the end.
    assert alarmed(recipe, run, teacher) == message
    assert teacher.asked == 60
    lower = changed(recipe, {"reading.floor": 0.3})
    assert "ner: 25.0 %" in alarmed(lower, run, teacher)
    assert teacher.asked == 65
    counts = read(changed(recipe, {"reading.floor": None}), run, teacher)
    assert (teacher.asked, counts["ner_known_before"], counts["ner_asked"]) == (100, 65, 35)
    assert figures(recipe, run)["behaviors"]["ner"]["verified"] == 50


def test_the_window_lives_on_from_call_to_call_and_is_of_one_behavior(tmp_path: Path) -> None:
    sentences = [f"Nothing happened on day {n}." for n in range(30)]
    recipe = a_recipe(tmp_path, sentences[:12], floor=0.5, floor_window=15)
    run = tmp_path / "run" / "readings"
    teacher = Scripted(lambda behavior, _: GOOD if behavior == "ner" else BAD)
    # 12 answers a behavior are too few to judge by.
    read(recipe, run, teacher)
    (tmp_path / "corpus.txt").write_text("\n\n".join(sentences), encoding="utf-8")
    assert "qra: 0.0 % of its last 15" in alarmed(recipe, run, teacher)
    assert teacher.asked == 12 + 12 + 18 + 3


def test_a_floor_changes_no_fingerprint_and_no_key(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, [f"Nothing happened on day {n}." for n in range(9)])
    watched = changed(recipe, {"reading.floor": 0.9, "reading.floor_window": 3})
    asked = " What happened on that day?\nAnswer: "
    teacher = Scripted(lambda behavior, sentence: GOOD if behavior == "ner" else asked + sentence)
    run = a_run(tmp_path, recipe, teacher)
    read(watched, run / "readings", teacher)
    assert teacher.asked == 18
    prints = []
    for one in (recipe, watched):
        pipeline = Pipeline(one, RunFolder(run, one), Console())
        prints.append([pipeline.read_print(), *map(pipeline.compose_print, pipeline.composed)])
    assert prints[0] == prints[1]


def test_the_alarm_through_the_command(tmp_path: Path, brd_here: BrdHere, recipe_file: Any) -> None:
    recipe_file(reading={"floor": 0.5, "floor_window": 5})
    done = brd_here("read", "small.yaml", "--out", "run")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("brd: ")]
    assert "reading.floor: ner: 0.0 % of its last 5 answers" in line
    assert "brd audit run" in line
    assert "reading has not come to its end" in brd_here("audit", "run").stdout
    done = brd_here("read", "small.yaml", "--out", "run", "--set", "reading.floor=null")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "steps" / "read.json").read_text())
    assert manifest["result"]["counts"]["ner_known_before"] == 5
    # What was read to its end stays so, whatever the floor.
    assert "up to date" in brd_here("read", "small.yaml", "--out", "run").stderr
