"""The audit: figures of small runs that were read by a scripted teacher, and in a terminal."""

import json
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted, a_recipe, a_run

from brd.audit import against_gold, annotations, audit, run_recipe, shown, tables
from brd.console import Console
from brd.errors import BrdError
from brd.reading.audit import audit as figures
from brd.reading.audit import scripts
from brd.reading.behavior import BEHAVIORS, Trait, load_behaviors
from brd.reading.ner import NamedEntities
from brd.reading.reader import read
from brd.reading.store import Store, every
from brd.reading.tally import Tally
from brd.recipe import Recipe, changed

BrdHere = Callable[..., CompletedProcess[str]]

LONG = "In the winter of that year nobody in the whole town knew why the old road to the north had been closed."
# A sentence, its entities, its question with the answer.
READ = [
    ("Ada Berg left Oslo.", " Ada Berg (person); Oslo (location)", " Who left Oslo?\nAnswer: Ada Berg."),
    ("On Monday Ada Berg left Oslo.", " Ada Berg (person); Bergen (location)", " Who left Oslo?\nAnswer: Ada Berg."),
    ("Then Ada Berg slept.", " Ada Berg (person); Oslo", " Who slept then?\nAnswer: Ada Berg."),
    (LONG, " none", " Why was the road closed?\nAnswer: Nobody knew why the road had been closed."),
    ("The ferry was late and Mira was angry.", " Mira (person)", " How does Mira feel?\nAnswer: Angry."),
    ("Mira came back on Sunday.", " Mira (person)", " Did Mira come back?\nAnswer: Yes."),
    ("Then it rained.", " rain (event)", " In which town did it rain?\nAnswer: In Bergen."),
    ("Snow fell in Lund.", " Snow (other); Snow (other)$", " What fell in Lund?\nAnswer: 雪 fell."),
]
ANSWERS = {sentence: {"ner": ner, "qra": qra} for sentence, ner, qra in READ}


def by_heart(behavior: str, sentence: str) -> str:
    return ANSWERS[sentence][behavior]


def looked_at(folder: Path, recipe: Recipe, teacher: Scripted) -> dict[str, Any]:
    return audit(recipe, a_run(folder, recipe, teacher), Console())


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    sentences = [sentence for sentence, _, _ in READ]
    return looked_at(tmp_path, a_recipe(tmp_path, [*sentences, sentences[0]]), Scripted(by_heart))


def test_verdicts_are_counted_by_behavior_and_by_length(found: dict[str, Any]) -> None:
    keys = ("asked", "well_formed", "verified", "grounded", "empty", "parts", "parts_verified", "not_asked")
    ner, qra = found["behaviors"]["ner"], found["behaviors"]["qra"]
    assert [ner[key] for key in keys] == [8, 6, 5, 3, 1, 7, 5, 0]
    assert [qra[key] for key in keys] == [8, 8, 5, 5, 0, 8, 5, 0]
    for behavior in (ner, qra):
        assert [row["asked"] for row in behavior["by_length"]] == [7, 0, 1, 0, 0]
        for key in keys[:-1]:
            assert sum(row[key] for row in behavior["by_length"]) == behavior[key]
    assert ner["by_length"][2] == {
        "words": "16 to 24", "asked": 1, "well_formed": 1, "verified": 1, "grounded": 0, "empty": 1,
        "parts": 0, "parts_verified": 0,
    }  # fmt: skip
    assert (found["run"], found["finished"], found["gold"]) == ("scripted", True, {})


def test_reasons_come_with_examples(found: dict[str, Any]) -> None:
    reasons = {row["reason"]: row for row in found["behaviors"]["ner"]["reasons"]}
    assert {reason: row["n"] for reason, row in reasons.items()} == {
        "not of the form 'name (type: description); ...'": 1,
        "cut off before its end": 1,
        "entity not in the sentence": 1,
    }
    sentence, answer, _ = READ[6]
    assert reasons["entity not in the sentence"]["examples"] == [{"sentence": sentence, "raw": answer}]
    [dropped] = found["behaviors"]["ner"]["dropped"]
    assert (dropped["reason"], dropped["n"]) == ("entity not in the sentence", 1)
    assert dropped["examples"][0]["sentence"] == READ[1][0]
    assert sum(row["n"] for row in found["behaviors"]["qra"]["reasons"]) == 3


def test_examples_are_three_and_do_not_hang_on_the_order(tmp_path: Path) -> None:
    sentences = [f"Nothing happened on day {n}." for n in range(30)]
    teacher = Scripted(lambda behavior, sentence: f" {sentence}")
    one = looked_at(tmp_path / "a", a_recipe(tmp_path / "a", sentences), teacher)
    other = looked_at(tmp_path / "b", a_recipe(tmp_path / "b", sentences[::-1], shard_rows=7), teacher)
    assert one["behaviors"] == other["behaviors"]
    [reason] = one["behaviors"]["ner"]["reasons"]
    assert reason["n"] == 30
    assert len({example["sentence"] for example in reason["examples"]}) == 3


def test_names_and_questions_are_told_apart(found: dict[str, Any]) -> None:
    types = found["behaviors"]["ner"]["labels"]["type of entity"]
    assert {row["label"]: (row["n"], row["distinct"]) for row in types["rows"]} == {
        "person": (4, 2),
        "location": (1, 1),
    }
    assert types["rows"][0]["commonest"] == [{"text": "Ada Berg", "n": 2}, {"text": "Mira", "n": 2}]
    assert (types["n"], types["distinct"], types["shared"], types["exact"]) == (5, 3, 4, True)
    asked = found["behaviors"]["qra"]["labels"]["question begins with"]
    assert {row["label"]: row["distinct"] for row in asked["rows"]} == {"who": 2, "why": 1, "how": 1}
    assert (asked["shared"], asked["rows"][0]["commonest"][0]) == (2, {"text": "Who left Oslo?", "n": 2})
    numbers = found["behaviors"]["qra"]["numbers"]
    assert numbers["words of the answer"] == {"n": 5, "mean": 3.0, "median": 2, "p90": 8, "most": 8}
    assert found["behaviors"]["ner"]["numbers"]["entities of a sentence"]["mean"] == 1.25


QUESTIONS = [
    ("How many ships left?", "how many", "content"),
    ("How does Ada feel about it?", "how", "attitude"),
    ("In which town did it rain?", "which", "content"),
    ("Weren't they late?", "yes or no", "content"),
    ("What two things does the sentence contrast?", "what", "structure"),
    ("Is the writer's attitude to the novel positive or negative?", "yes or no", "attitude"),
    ("The novel is what?", "other words", "content"),
    ("?", "other words", "content"),
]


@pytest.mark.parametrize(("question", "beginning", "about"), QUESTIONS)
def test_kinds_of_questions(question: str, beginning: str, about: str) -> None:
    traits = load_behaviors(["qra"])["qra"].traits({"question": question, "answer": "Yes."})  # type: ignore[attr-defined]
    assert [trait.value for trait in traits][:2] == [beginning, about]


def test_what_repeats_is_counted(found: dict[str, Any]) -> None:
    repeats = found["behaviors"]["ner"]["repeats"]
    assert (repeats["n"], repeats["distinct"], repeats["shared"]) == (4, 3, 2)
    assert repeats["commonest"] == [{"text": "Mira (person)", "n": 2}]
    assert found["behaviors"]["qra"]["repeats"]["commonest"] == [{"text": "Who left Oslo? Answer: Ada Berg.", "n": 2}]
    # The first sentence stands at two places, and was read once.
    places = found["sentences"]
    assert (places["places"], places["distinct"], places["repeated"]) == (9, 8, 2)
    assert places["commonest"] == [{"text": READ[0][0], "n": 2}]


def test_scripts_tell_answers_that_leave_the_language(found: dict[str, Any]) -> None:
    assert found["sentences"]["scripts"] == {"Latin": 9}
    [foreign] = found["behaviors"]["qra"]["other_scripts"]
    assert (foreign["reason"], foreign["n"], foreign["examples"][0]["sentence"]) == ("Han", 1, READ[7][0])
    assert scripts("Ⅻ ﬁ Привет, ˇ 5 µ") == {"Latin", "Cyrillic", "Greek"}
    assert scripts("12 — 。") == scripts("...") == frozenset()


def test_readings_that_the_recipe_does_not_want_are_left_out(tmp_path: Path) -> None:
    sentences = [sentence for sentence, _, _ in READ]
    recipe = a_recipe(tmp_path, sentences)
    run = a_run(tmp_path, recipe, Scripted(by_heart))
    (tmp_path / "corpus.txt").write_text("\n\n".join(sentences[:5]), encoding="utf-8")
    read(recipe, run / "readings", Scripted(by_heart))
    found = figures(recipe, run / "readings")
    assert found["other_readings"] == 6
    assert [row["asked"] for row in found["behaviors"].values()] == [5, 5]
    other = changed(recipe, {"reading.exemplars": "instruct"})
    with (
        pytest.raises(BrdError, match=r"run: no reading by its recipe's teacher, .*\(16 by others\)"),
        Console() as out,
    ):
        audit(other, run, out)


def test_reading_that_was_interrupted_can_be_looked_at(tmp_path: Path) -> None:
    class Dies(Exception):
        pass

    def write(behavior: str, sentence: str) -> str:
        if behavior == "qra" and sentence == READ[4][0]:
            raise Dies
        return by_heart(behavior, sentence)

    recipe = a_recipe(tmp_path, [sentence for sentence, _, _ in READ])
    with pytest.raises(Dies):
        a_run(tmp_path, recipe, Scripted(write))
    found = audit(recipe, tmp_path / "run", Console())
    assert found["behaviors"]["ner"]["not_asked"] == 0
    assert 0 < found["behaviors"]["qra"]["not_asked"] < 8
    assert not found["finished"]
    assert "reading has not come to its end" in tables(found)
    # What a killed process leaves: the same rows in the journal, one of them in a shard as well, and a torn one.
    readings = tmp_path / "run" / "readings"
    with Store(readings) as store:
        store.append([replace(next(every(readings))[0], key="of another")])
        journal = (readings / "journal.jsonl").read_text()
    (readings / "journal.jsonl").write_text(journal + '{"key": "torn')
    assert figures(recipe, readings) | {"other_readings": 0} == {k: found[k] for k in figures(recipe, readings)}


class Words(NamedEntities):
    """A behavior that provides nothing for an audit."""

    traits = None  # type: ignore[assignment]


class Vowels(NamedEntities):
    """One that takes its labels from what the model wrote."""

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        yield Trait("first\nname", content["entities"][0]["text"])


def test_a_behavior_may_have_figures_of_its_own_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"Ada{n} slept." for n in range(300)]
    for cls, labels in ((Words, 0), (Vowels, 201)):
        monkeypatch.setitem(BEHAVIORS, "ner", f"{__name__}:{cls.__name__}")
        monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
        folder = tmp_path / cls.__name__
        recipe = a_recipe(folder, sentences, behaviors=["ner"])
        found = looked_at(folder, recipe, Scripted(lambda _, s: f" {s.split()[0]} (person)"))
        own = found["behaviors"]["ner"]["labels"]
        assert sum(len(table["rows"]) for table in own.values()) == labels
        assert found["behaviors"]["ner"]["numbers"]["words of the reading"]["n"] == 300
        assert tables(found)
    assert own["first\nname"]["rows"][0] == {"label": "(others)", "n": 100}


@given(st.lists(st.sampled_from("abcdefg")))
def test_a_tally_with_room_is_exact(texts: list[str]) -> None:
    tally, counts = Tally(7), Counter(texts)
    for text in texts:
        tally.add(text)
    assert tally.exact
    assert (tally.total, tally.distinct) == (len(texts), len(counts))
    assert tally.shared == sum(n for n in counts.values() if n > 1)
    assert dict(tally.commonest(10)) == counts
    assert dict(tally.commonest(10, 2)) == {text: n for text, n in counts.items() if n > 1}


def test_a_tally_without_room_estimates() -> None:
    # 20,000 that come once, 2,000 that come five times, one that comes 3,000 times.
    texts = [f"once {n}" for n in range(20_000)] + [f"five {n}" for n in range(2000)] * 5 + ["often"] * 3000
    random.Random(0).shuffle(texts)
    tally = Tally(1000)
    for text in texts:
        tally.add(text)
    assert not tally.exact
    assert tally.distinct == pytest.approx(22_001, rel=0.15)
    assert tally.shared == pytest.approx(13_000, rel=0.25)
    [(text, n)] = tally.commonest(1)
    assert text == "often"
    assert 3000 - len(texts) / 1000 <= n <= 3000


def test_memory_does_not_grow_with_the_readings(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        folder = tmp_path / str(n)
        recipe = a_recipe(folder, [f"Ada{k} slept on day {k}." for k in range(n)], behaviors=["ner"], shard_rows=500)
        run = a_run(folder, recipe, Scripted(lambda _, s: f" {s.split()[0]} (person: who slept {s})"))
        tracemalloc.start()
        found = figures(recipe, run / "readings", room=100)
        assert found["behaviors"]["ner"]["grounded"] == n
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1500)
    # A row of the store is about 1 kB.
    assert peak(6000) - peak(1500) < 4500 * 100


HOSTILE = "\x1b[31mred\x1b]0;owned\x07 \u202e \r\x08 <script>alert(1)</script> [bold]{0} %s \x9b2J"


def test_a_terminal_is_only_printed_to(tmp_path: Path, brd_here: BrdHere) -> None:
    sentences = [f"{HOSTILE} Ada{n} slept." for n in range(9)]
    write = {"ner": f" Ada (person: {HOSTILE})", "qra": f" What {HOSTILE} slept?\nAnswer: {HOSTILE} slept."}
    a_run(tmp_path, a_recipe(tmp_path, sentences), Scripted(lambda behavior, _: write[behavior]))
    done = brd_here("audit", "run")
    assert done.returncode == 0, done.stderr
    assert "<script>alert(1)</script> [bold]{0} %s" in done.stdout
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    kept = json.loads((tmp_path / "run" / "audit.json").read_text(encoding="utf-8"))
    assert any("\x1b" in e["sentence"] for r in kept["behaviors"]["ner"]["reasons"] for e in r["examples"])
    assert shown("a" * 200, 10) == "aaaaaaaaa…"


def one_line(done: CompletedProcess[str], *words: str) -> None:
    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert not done.stdout
    assert line.startswith("brd: ")
    for word in words:
        assert word in line


def test_what_is_no_run_is_one_helpful_line(tmp_path: Path, brd_here: BrdHere) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    one_line(brd_here("audit", "gone"), "gone: no such folder", "runs/demo")
    one_line(brd_here("audit", "demo"), "demo: no such folder; did you mean runs/demo?")
    one_line(brd_here("audit", "empty"), "empty: nothing was read here yet; run `brd read RECIPE --out empty`")


IOB2 = "# text = Oslo is dull in winter.\n1\tOslo\tB-LOC\n2\tis\tO\n"


def test_a_run_in_a_terminal_and_its_teacher_against_annotations(
    tmp_path: Path, brd_here: BrdHere, recipe_file: Any
) -> None:
    recipe_file(reading={"behaviors": ["ner"], "exemplars": "plain"})
    assert brd_here("read", "small.yaml", "--out", "run").returncode == 0
    gold = tmp_path / "gold.iob2"
    gold.write_text(IOB2, encoding="utf-8")
    one_line(brd_here("audit", "run", "--answers", gold), "--answers: this run does not read with qra")
    one_line(brd_here("audit", "run", "--entities", "gone.iob2"), "gone.iob2: no such file")
    done = brd_here("audit", "run", "--entities", gold)
    assert done.returncode == 0, done.stderr
    assert "entities (gold.iob2)" in done.stdout
    kept = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert kept["gold"]["entities"] | {"n": 1, "file": "gold.iob2", "same_teacher": True} == kept["gold"]["entities"]
    # It is known from now on.
    assert "entities (gold.iob2)" in brd_here("audit", "run").stdout


def test_a_teacher_against_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = a_recipe(tmp_path, [sentence for sentence, _, _ in READ])
    run = a_run(tmp_path, recipe, Scripted(by_heart))
    (tmp_path / "gold.iob2").write_text(
        "# text = Oslo is dull in winter.\n1\tOslo\tB-LOC\n2\tis\tO\n", encoding="utf-8"
    )
    asked = [{"id": str(n), "question": q, "answers": [{"text": "Ada", "answer_start": 0}]} for n, q in enumerate("ab")]
    squad = {"data": [{"paragraphs": [{"context": "Ada left the town.", "qas": asked}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))

    class Examined(Scripted):
        def answer(self, prefix: str, suffixes: Any, **how: Any) -> Any:
            given = [
                " ada!" if "Question: a" in s else " Berg" if "Question" in s else " Oslo (place)" for s in suffixes
            ]
            return super().answer(prefix, [f"Sentence: {text}\nner" for text in given], **how)

    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda settings: Examined(lambda _, text: text))
    audit(recipe, run, Console())
    against_gold(recipe, run, annotations(recipe, tmp_path / "gold.iob2", None, 10))
    against_gold(recipe, run, annotations(recipe, None, tmp_path / "squad.json", 10))
    found = json.loads((run / "audit.json").read_text())["gold"]
    assert (found["entities"]["n"], found["entities"]["f1"]) == (1, 1.0)
    assert (found["answers"]["n"], found["answers"]["f1"], found["answers"]["exact_match"]) == (2, 0.5, 0.5)
    assert run_recipe(run).reading == recipe.reading
