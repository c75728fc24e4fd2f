"""Verdicts follow the verifier, whatever of it changes, and are not derived anew where nothing did."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, a_recipe

from brd.reading import behavior as behaviors_of
from brd.reading.behavior import exemplars, load_behaviors
from brd.reading.languages import load_language
from brd.reading.ner import NamedEntities
from brd.reading.reader import read
from brd.reading.store import every
from brd.reading.verifier import verifier_print, verifier_prints
from brd.recipe import Recipe, changed

SENTENCES = [f"Mira sailed to Oslo on day {n}." for n in range(20)]
MINE = """
from brd.reading.ner import NamedEntities
from helpers.words import LIMIT


class Mine(NamedEntities):
    def judge(self, raw, sentence, **keywords):
        from helpers import late

        judged["calls"] += 1
        return late.strict(super().judge(raw, sentence, **keywords)) if len(raw) > LIMIT else super().judge(
            raw, sentence, **keywords
        )


judged = {"calls": 0}
"""
LATE = """
import dataclasses


def strict(judgement):
    return dataclasses.replace(judgement, verdict="rejected", reason="too long", parts_verified=0)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A behavior of one's own, with a package of its own; as in a new process after each call of ``afresh``."""
    (tmp_path / "helpers").mkdir()
    for name, text in (
        ("mine", MINE),
        ("helpers/__init__", ""),
        ("helpers/words", "LIMIT = 99"),
        ("helpers/late", LATE),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "helpers" / "unrelated.py").write_text("X = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(behaviors_of.BEHAVIORS, "ner", "mine:Mine")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def afresh() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("mine", "helpers")]:
        del sys.modules[name]


def small(folder: Path, **reading: Any) -> Recipe:
    return a_recipe(folder, SENTENCES, behaviors=["ner"], shard_rows=6, **reading)


def read_again(recipe: Recipe, folder: Path) -> tuple[int, int, set[str]]:
    """Answers that were asked for, verdicts that were derived, and the verdicts that are stored then."""
    afresh()
    teacher = Scripted(lambda *_: " Oslo (location)")
    read(recipe, folder, teacher)
    import mine  # type: ignore[import-not-found]

    return teacher.asked, mine.judged["calls"], {r.verdict for some in every(folder) for r in some}


def test_what_changes_a_verdict_has_all_judged_anew_and_nothing_else_does(mine: Path) -> None:
    recipe, folder = small(mine), mine / "readings"
    assert read_again(recipe, folder) == (20, 20, {"verified"})
    assert read_again(recipe, folder) == (0, 0, {"verified"})
    (mine / "helpers" / "unrelated.py").write_text("X = 2")
    assert read_again(recipe, folder) == (0, 0, {"verified"})
    # Its own module, a module that it imports, one that it imports while it judges, a setting.
    (mine / "mine.py").write_text(MINE + "# another\n")
    assert read_again(recipe, folder) == (0, 20, {"verified"})
    (mine / "helpers" / "words.py").write_text("LIMIT = 9")
    assert read_again(recipe, folder) == (0, 20, {"rejected"})
    (mine / "helpers" / "late.py").write_text(LATE.replace("rejected", "malformed"))
    assert read_again(recipe, folder) == (0, 20, {"malformed"})
    recipe = changed(recipe, {"reading.drop_bad_entities": False})
    assert read_again(recipe, folder) == (0, 20, {"malformed"})
    assert read_again(recipe, folder) == (0, 0, {"malformed"})


def test_an_answer_in_the_journal_is_judged_anew_too(mine: Path) -> None:
    recipe, folder = small(mine), mine / "readings"
    stopped = 0

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 10:
            raise OSError("stopped")

    with pytest.raises(OSError, match="stopped"):
        read(recipe, folder, Scripted(lambda *_: " Oslo (location)"), stop)
    assert (folder / "journal.jsonl").read_text().count("\n") > 0
    (mine / "helpers" / "words.py").write_text("LIMIT = 9")
    asked, _, verdicts = read_again(recipe, folder)
    assert verdicts == {"rejected"}
    assert 0 < asked < 20
    assert read_again(recipe, folder) == (0, 0, {"rejected"})


def test_readings_of_a_behavior_that_the_recipe_does_not_name_keep_their_verdicts(tmp_path: Path) -> None:
    both = a_recipe(tmp_path, SENTENCES, shard_rows=6)
    teacher = Scripted(lambda *_: " Oslo (location)")
    read(both, tmp_path / "readings", teacher)
    assert teacher.asked == 40
    strict = changed(both, {"reading.behaviors": ["ner"], "reading.drop_bad_entities": False})
    for recipe in (strict, both):
        read(recipe, tmp_path / "readings", teacher)
        found = [(r.behavior, r.verdict) for some in every(tmp_path / "readings") for r in some]
        assert sorted(found) == [("ner", "verified")] * 20 + [("qra", "malformed")] * 20
    assert teacher.asked == 40


def test_a_verifier_has_one_name_in_all_processes_and_another_when_a_function_is_put_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = "load_behaviors(['ner', 'qra'], languages=['en', 'de'])"
    found = verifier_prints(load_behaviors(["ner", "qra"], languages=["en", "de"]), x=1)
    code = (
        "from brd.reading.behavior import load_behaviors; from brd.reading.verifier import verifier_prints; "
        f"print(verifier_prints({asked}, x=1))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == f"{found}\n"
    plain, other = load_behaviors(["ner"]), load_behaviors(["ner"], "instruct")
    prints = {*found.values(), *(verifier_prints(b, x=x)["ner"] for b, x in ((plain, 1), (plain, 2), (other, 1)))}
    assert len(prints) == 5
    before = verifier_print(plain["ner"])

    def judge(self: NamedEntities, *arguments: Any, **keywords: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(NamedEntities, "judge", judge)
    assert verifier_print(plain["ner"]) != before


def test_the_rules_of_a_language_are_part_of_its_verifier() -> None:
    rules = load_language("de")
    assert rules.names is not None
    fewer = replace(rules, names=replace(rules.names, times=rules.names.times - {"juli"}))
    one, same, other = (NamedEntities(exemplars("ner", language="de"), r) for r in (rules, replace(rules), fewer))
    assert verifier_print(one) == verifier_print(same) != verifier_print(other)


def test_what_an_object_holds_has_one_form_however_deep_it_lies() -> None:
    class Holding:
        def __init__(self, *held: Any) -> None:
            self.held = held

    def printed(*held: Any) -> str:
        return verifier_print(Holding(*held))  # type: ignore[arg-type]

    itself: list[Any] = []
    itself.append(itself)
    long = "a" * 300
    for one, same, other in (
        ({"a", "b", "c"}, {"c", "b", "a"}, {"a", "b"}),
        (re.compile(long + "b"), re.compile(long + "b"), re.compile(long + "c")),
        ({"x": frozenset("ab")}, {"x": frozenset("ba")}, {"x": frozenset("a")}),
        (itself, itself, [itself, 1]),
    ):
        assert printed(one) == printed(same) != printed(other)


def test_where_the_code_cannot_be_had_the_verifier_is_another_one_each_time() -> None:
    space: dict[str, Callable[[], Any]] = {"__name__": "nowhere"}  # type: ignore[dict-item]
    exec("class Typed:\n    name = 'typed'", space)
    sys.modules["nowhere"] = type(sys)("nowhere")
    try:
        assert verifier_print(space["Typed"]()) != verifier_print(space["Typed"]())
    finally:
        del sys.modules["nowhere"]
