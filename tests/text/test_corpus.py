"""The filtered corpus: counted, recorded, undone, and the same for every step that reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brd import recipe as recipes
from brd.composing.compose import compose, compose_healing
from brd.composing.packing import TokenRows
from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.reading.reader import Readings
from brd.recipe_corpus import corpus_parts, open_corpus
from brd.run import RunFolder, read_json
from brd.sections.filters import Filters
from brd.sections.text import Text
from brd.summary import filter_lines
from brd.text.corpus import Corpus
from brd.text.filters import FILTERS
from brd.text.sources import paragraphs

ALL: dict[str, Any] = {
    "length": {"min_characters": 4},
    "language": {"min_characters": 40},
    "repetition": {"min_words": 8},
    "pii": {"kinds": ["email", "ip"]},
    "exact_duplicates": {},
    "near_duplicates": {"min_words": 5, "permutations": 32},
}
LINES = (
    "The ferry waits in the harbour until the tide has turned again.",
    "The ferry waits in the harbour until the tide has turned again!",
    "Der Hafenmeister zählt am Abend alle Boote, die noch nicht zurück sind.",
    "go home go home go home go home go home go home",
    "Ask the harbour master at boats@port.example for a place to sleep.",
    "A gull sat on the customs house.",
    "No.",
    "",
)  # fmt: skip
PLACE = tuple[str, int]


def corpus_file(folder: Path, lines: list[str]) -> Path:
    path = folder / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def corpus(source: Path, filters: dict[str, Any], record: Path | None = None, **keys: Any) -> Corpus:
    return Corpus(Text(source=str(source), filters=Filters.model_validate(filters), **keys), record=record)


def places(stream: Any) -> list[PLACE]:
    return [(p.document, p.index) for p in stream]


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=30), st.sets(st.sampled_from(sorted(ALL))))
def test_counts_add_up_and_every_decision_is_recorded(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], on: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    source, record = corpus_file(folder, [*lines, "A last line of some length."]), folder / "dropped.parquet"
    filtered = corpus(source, {name: ALL[name] for name in on}, record)
    before, after = list(paragraphs(filtered.settings)), list(filtered)
    counts = filtered.counts().get("corpus")
    if not on:
        assert (after, counts, record.exists()) == (before, None, False)
        return
    assert counts is not None
    dropped = [row for row in rows(record) if row["action"] == "dropped"]
    changed = [row for row in rows(record) if row["action"] == "changed"]
    assert counts["paragraphs_seen"] == len(before)
    assert counts["paragraphs_kept"] == len(after) == len(before) - len(dropped)
    assert counts["documents_kept"] == len({p.document for p in after})
    assert counts["documents_seen"] == len({p.document for p in before})
    for name, found in counts["filters"].items():
        assert found["dropped"] == sum(row["filter"] == name for row in dropped)
        assert found["changed"] == sum(row["filter"] == name for row in changed)
        own = {row["document"] for row in rows(record) if row["filter"] == name}
        assert found["documents"] == len(own)
    # What is left and what was dropped are the corpus, in its order and under its numbers.
    gone = {(row["document"], row["paragraph"]) for row in dropped}
    assert places(after) == [place for place in places(before) if place not in gone]
    assert len(gone) == len(dropped)
    text = {(p.document, p.index): p.text for p in before}
    altered = {(p.document, p.index) for p in after if p.text != text[p.document, p.index]}
    assert altered == {(r["document"], r["paragraph"]) for r in changed} - gone
    assert list(filtered) == after


def test_filters_see_the_order_of_the_sources_whatever_the_order_of_reading(tmp_path: Path) -> None:
    source = corpus_file(tmp_path, [f"{LINES[0]}\n{line}\n" for line in LINES])
    plain = corpus(source, ALL)
    shuffled = corpus(source, ALL, order="shuffled")
    assert sorted(places(plain)) == sorted(places(shuffled))
    assert ("corpus.txt#0", 0) in places(shuffled)
    assert plain.counts() == shuffled.counts()


def test_a_pass_that_stops_early_is_recorded_as_far_as_it_went(tmp_path: Path) -> None:
    source, record = corpus_file(tmp_path, ["One line.", "No.", "Two lines.", "No!", "Three."]), tmp_path / "d.parquet"
    with corpus(source, {"length": {"min_characters": 5}}, record) as filtered:
        long, short = iter(filtered), iter(filtered)
        assert [next(long).text, next(short).text, next(long).text] == ["One line.", "One line.", "Two lines."]
    # Of two passes the longer one counts, and nothing else is left.
    assert [row["paragraph"] for row in rows(record)] == [1]
    assert filtered.counts()["corpus"]["paragraphs_seen"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.txt", "d.parquet"]
    assert corpus(source, {"length": {"min_characters": 5}}).counts() == {}


def test_a_record_of_filters_that_are_off_now_does_not_stay(tmp_path: Path) -> None:
    source, record = corpus_file(tmp_path, ["One line.", "No."]), tmp_path / "dropped.parquet"
    with corpus(source, {"length": {"min_characters": 5}}, record) as filtered:
        assert len(list(filtered)) == 1
    assert len(rows(record)) == 1
    with corpus(source, {}, record) as plain:
        assert len(list(plain)) == 2
    assert not record.exists()


def test_filters_that_leave_nothing_are_an_error(tmp_path: Path) -> None:
    source = corpus_file(tmp_path, ["No.", "No."])
    with pytest.raises(BrdError, match=r"text.filters: none of 2 paragraphs is left \(dropped by length 2\)"):
        list(corpus(source, {"length": {"min_words": 9}}))
    with pytest.raises(BrdError, match=r"text.source: the corpus is empty"):
        list(corpus(corpus_file(tmp_path, [""]), {"length": {"min_words": 9}}))


def test_decisions_are_undone_one_by_one(tmp_path: Path) -> None:
    source, record = corpus_file(tmp_path, ["One line.", "No.", "Two lines.", "No.", "Nay."]), tmp_path / "d.parquet"
    keys: dict[str, Any] = {"length": {"min_characters": 5}}
    with corpus(source, keys, record) as filtered:
        list(filtered)
    table = pq.read_table(record)
    pq.write_table(table.filter(pa.compute.equal(table["paragraph"], 3)), tmp_path / "spare.parquet")
    (tmp_path / "spare.jsonl").write_text('{"document": "corpus.txt#0", "paragraph": 3}\n\n', encoding="utf-8")
    for name in ("spare.parquet", "spare.jsonl"):
        spared = corpus(source, {**keys, "spare": str(tmp_path / name)}, record)
        assert [p.index for p in spared] == [0, 2, 3]
        assert spared.counts()["corpus"]["filters"]["length"]["dropped"] == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, r"none.jsonl: no such file \(text.filters.spare\)"),
        ("a.txt", b"x", r"should end in .parquet or .jsonl"),
        ("a.jsonl", b'{"document": "a"}\n', r"a.jsonl:1: should have a document \(text\) and a paragraph"),
        ("a.jsonl", b"{\n", r"a.jsonl:1: not valid JSON"),
        ("a.parquet", b"PAR1 nonsense", r"a.parquet: not a Parquet file"),
    ],
)
def test_wrong_lists_of_spared_paragraphs(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    keys = {"length": {"min_words": 1}, "spare": str(tmp_path / name)}
    with pytest.raises(BrdError, match=message):
        list(corpus(corpus_file(tmp_path, ["One line."]), keys))


# In a recipe


def a_recipe(folder: Path, text: str, **sections: str) -> recipes.Recipe:
    path = folder / "r.yaml"
    path.write_text("\n".join(["name: r", f"text: {text}", *(f"{k}: {v}" for k, v in sections.items())]))
    return recipes.load(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{filters: {lenght: {}}}", r"r.yaml:2: unknown key 'text.filters.lenght'; did you mean 'length'"),
        ("{filters: {length: {}}}", r"r.yaml:2: text.filters.length: should set at least one of"),
        ("{filters: {length: {min_word: 1}}}", r"unknown key 'text.filters.length.min_word'; did you mean 'min_words'"),
        ("{filters: {near_duplicates: {threshold: 2}}}", r"text.filters.near_duplicates.threshold: .*less than 1"),
        ("{filters: {pii: {kinds: [mail]}}}", r"text.filters.pii.kinds: unknown kind 'mail'"),
        ("{filters: {pii: {region: uk}}}", r"text.filters.pii.region: "),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BrdError, match=message):
        a_recipe(tmp_path, text)


def test_filters_can_be_set_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ntext: {filters: {length: null}}\n")
    (tmp_path / "spare.jsonl").write_text("")
    overrides = ["text.filters.length.min_words=3", "text.filters.pii={}", "text.filters.spare=spare.jsonl"]
    loaded = recipes.load(str(path), overrides)
    assert sorted(loaded.text.filters.on()) == ["length", "pii"]
    assert loaded.text.filters.spare == str(Path.cwd() / "spare.jsonl")
    path.write_text("name: r\ntext: {filters: {spare: spare.jsonl}}\n")
    assert recipes.load(str(path)).text.filters.spare == str(tmp_path / "spare.jsonl")


def test_fingerprints_follow_filters_tests_and_spared_paragraphs_and_stay_without(tmp_path: Path) -> None:
    plain = recipes.load("demo")
    keys = plain.text.model_dump(exclude={"source", "filters", "id_field", "language_field", "language_of"})
    assert corpus_parts(plain)[0] == keys
    (tmp_path / "spare.jsonl").write_text("")

    def printed(*overrides: str) -> str:
        return json.dumps(corpus_parts(recipes.load("demo", list(overrides))), sort_keys=True, default=str)

    spare = f"text.filters.spare={tmp_path / 'spare.jsonl'}"
    prints = [
        printed(),
        printed("text.id_field=id"),
        *(printed(f"text.filters.{name}={json.dumps(ALL.get(name, {}))}") for name in FILTERS),
        printed("text.filters.length={min_characters: 5}"),
        printed("text.filters.decontaminate={}", "evaluation.tasks=[rte]"),
        printed("text.filters.pii={kinds: [email, ip]}", spare),
    ]
    assert len(set(prints)) == len(prints)
    # What no filter looks at changes nothing.
    assert printed("evaluation.tasks=[rte]") == printed() == printed(spare)
    assert printed("text.filters.pii={}", "evaluation.tasks=[rte]") == printed("text.filters.pii={}")
    with_spare = printed("text.filters.pii={}", spare)
    (tmp_path / "spare.jsonl").write_text('{"document": "a", "paragraph": 0}\n')
    assert printed("text.filters.pii={}", spare) != with_spare


class Namer:
    """Reads any sentence in no time."""

    context_length = 1000

    def __init__(self, settings: Any = None) -> None:
        self.asked: list[str] = []

    def identity(self) -> dict[str, str]:
        return {"model": "namer"}

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer(self, prefix: str, suffixes: Any, **_: Any) -> Any:
        from brd.teachers.teacher import Answer

        self.asked += suffixes
        yield from ((number, Answer(" none", 5, 5, True)) for number in range(len(suffixes)))

    def close(self) -> None:
        pass


def test_reading_further_text_and_healing_see_the_same_corpus(
    tmp_path: Path, tiny_model: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [f"Boat number {n} is tied to the quay of the old harbour with two ropes." for n in range(90)]
    lines = [line for n, text in enumerate(kept) for line in (text, "", f"Short {n}.", "", kept[n // 2], "")]
    corpus_file(tmp_path, lines)
    loaded = a_recipe(
        tmp_path,
        "{source: corpus.txt, held_out: 0.2, healing: 0.3, filters: {length: {min_characters: 20}, "
        "exact_duplicates: {}}}",
        reading="{behaviors: [ner], sentences: 12, held_out_sentences: 3}",
        composing="{row_tokens: 16}",
        healing="{most_tokens: 64, cooling_tokens: 32}",
        student=f"{{model: {tiny_model}}}",
        training="{rows_per_step: 2, micro_rows: 2, epochs: 3}",
        arms="[base, further, brd]",
    )
    monkeypatch.setattr("brd.teachers.LazyTeacher", Namer)
    pipeline = Pipeline(loaded, RunFolder(tmp_path / "run", loaded), Console())
    pipeline.up_to("compose")
    read = pipeline.result("read")
    assert {p.text for p in Readings(loaded, tmp_path / "run/readings").paragraphs} <= set(kept)
    dropped = rows(tmp_path / "run/readings/dropped.parquet")
    assert {row["filter"] for row in dropped} == {"length", "exact_duplicates"}
    assert len(dropped) == sum(f["dropped"] for f in read["corpus"]["filters"].values())
    for arm in ("further", "healing"):
        counts = pipeline.result(f"compose.{arm}")["corpus"]
        found = rows(tmp_path / f"run/composed/{arm}.dropped.parquet")
        assert len(found) == counts["paragraphs_seen"] - counts["paragraphs_kept"] > 0
        size = min(len(found), len(dropped))
        assert found[:size] == dropped[:size]
    assert "corpus" not in pipeline.result("compose.brd")
    for folder in ("further", "healing/heating", "healing/cooling", "healing/watched"):
        tokens = TokenRows(tmp_path / "run/composed" / folder)
        text = tokenizer.decode([i for n in range(len(tokens)) for i in tokens[n]])
        assert "Boat number" in text
        assert "Short" not in text
    assert filter_lines(read["corpus"])[0].startswith("filters: ")
    # Another filter is another reading; the same ones are not run again.
    state = pipeline.state()
    assert state["read"]
    assert state["compose.further"]
    other = recipes.changed(loaded, {"text.filters.length": {"min_characters": 21}})
    assert not Pipeline(other, pipeline.run, Console()).state()["read"]
    assert read_json(tmp_path / "run/steps/read.json")["result"]["corpus"] == read["corpus"]


def test_a_recipes_tests_are_kept_out_of_every_step(tmp_path: Path, tokenizer: Any, recipe_file: Any) -> None:
    from brd.evaluation.contamination import find_overlap, task_items
    from brd.evaluation.tasks import load_task

    task = load_task("rte")
    item = next(i for i in task_items(task) if len(i.texts[0].split()) > 20)
    source = corpus_file(tmp_path, ["A harbour line.", "", f"Seen: {item.texts[0]}", "", "Another harbour line."])
    loaded = recipes.load(
        str(recipe_file(text={"source": str(source), "layout": "line", "filters": {"decontaminate": {}}})),
        ["evaluation.tasks=[rte]"],
    )
    filtered = open_corpus(loaded)
    assert [p.text for p in filtered] == ["A harbour line.", "Another harbour line."]
    assert filtered.counts()["corpus"]["filters"]["decontaminate"] == {"dropped": 1, "changed": 0, "documents": 1}
    left = [(p.document, p.text) for p in filtered]
    assert not find_overlap(task_items(task), left)["rte"].flagged
    for step in (
        lambda: compose(loaded, "original", SimpleReadings(), tokenizer, tmp_path / "further", 4),
        lambda: compose_healing(
            recipes.changed(loaded, {"healing": {"most_tokens": 8}}), tokenizer, tmp_path / "healing"
        ),
    ):
        # Forgotten tests are told, not passed over.
        with pytest.raises(BrdError, match="the tests are not known here"):
            step()


class SimpleReadings:
    paragraphs: tuple[Any, ...] = ()


def test_validate_tells_what_is_dropped_and_what_is_not_pinned(
    tmp_path: Path,
    recipe_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from brd.cli import validate

    texts = [f"The boat number {n} is tied to the quay of the old harbour." for n in range(40)]
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: [{"text": t} for t in [*texts, *texts]])
    path = recipe_file(
        text={"source": "hub:some/name", "filters": {"exact_duplicates": {}}}, evaluation={"tasks": ["rte"]}
    )
    monkeypatch.chdir(tmp_path)
    validate(str(path), None, ["reading.sentences=1000"])
    said = capsys.readouterr().out
    assert "filters: 40 of 80 paragraphs kept, 40 of 80 documents" in said
    assert "  exact_duplicates: 40 paragraphs dropped, in 40 documents" in said
    assert "hub:some/name may change: name a commit in text.revision" in said
    validate(str(path), None, ["text.revision=abc", "text.filters.exact_duplicates=null"])
    said = capsys.readouterr().out
    assert "filters" not in said
    assert "may change" not in said
