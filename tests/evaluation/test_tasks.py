"""Tasks: the shipped files, the boundary rule, and an error that says where for everything that can be wrong."""

import json
from collections import Counter
from pathlib import Path

import pytest

from brd.errors import BrdError
from brd.evaluation.tasks import SHIPPED, Item, items, load_task

ENTAILMENT = ("entailment", "neutral", "contradiction")

TASK = """\
name: mood
version: 1
about: Mood of a sentence.
source:
  file: data.jsonl
templates:
  plain:
    prompt: "Text: {{ text }}\\nMood:"
    candidates: [" bad", " good"]
  given:
    prompt: "{{ text }} So"
    candidates: [" {{ first }}", " {{ second | trim }}"]
label: mood
labels:
  sad: 0
  glad: 1
citation: None.
licence: CC0
"""
RECORDS: list[dict[str, object]] = [
    {"text": "It rains.", "mood": "sad", "first": "I cry.", "second": " I dance."},
    {"text": "<b>{{ 1 + 1 }}</b>", "mood": "glad", "first": "a", "second": "b"},
    {"text": "We won.", "mood": "glad", "first": "c", "second": "d"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, TASK, RECORDS)
    return tmp_path


def write(folder: Path, task: str, records: list[dict[str, object]]) -> Path:
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (folder / "mood.yaml").write_text(task, encoding="utf-8")
    return folder / "mood.yaml"


def message(path: Path, template: str | None = None) -> str:
    with pytest.raises(BrdError) as caught:
        list(items(load_task(path), template))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_shipped_task_is_named_after_its_file_and_has_two_templates(path: Path) -> None:
    task = load_task(path.stem)
    assert task.name == path.stem
    assert len(task.templates) == 2


@pytest.mark.parametrize(
    ("name", "balance"),
    [("sst2", (428, 444)), ("rte", (146, 131)), ("cb", (23, 28, 5)), ("boolq", (1237, 2033)), ("piqa", (910, 928))],
)
def test_embedded_tasks_have_the_published_size_and_balance_under_every_template(
    name: str, balance: tuple[int, ...]
) -> None:
    task = load_task(name)
    for template in task.templates:
        gold = Counter(item.gold for item in items(task, template))
        assert tuple(gold[index] for index in range(len(balance))) == balance


def test_candidates_of_a_shipped_task_stand_beside_the_right_labels() -> None:
    first = next(items(load_task("sst2")))
    assert first == Item(
        "sst2/0",
        "Review: it 's a charming and often affecting journey .\nSentiment:",
        (" negative", " positive"),
        1,
    )


@pytest.mark.parametrize(
    ("name", "records", "golds"),
    [
        (
            "xnli",
            [{"premise": "A.", "hypothesis": "B.", "label": label} for label in (*ENTAILMENT, 0, 1, 2)],
            "yes maybe no",
        ),
        ("pawsx", [{"sentence1": "A .", "sentence2": "B .", "label": label} for label in (0, 1)], "no yes"),
    ],
)
def test_hub_tasks_read_a_local_copy_when_source_is_replaced(
    tmp_path: Path, name: str, records: list[dict[str, object]], golds: str
) -> None:
    head, rest = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").split("  hub:\n")
    path = write(tmp_path, f"{head}  file: data.jsonl\ntemplates:{rest.split('templates:')[1]}", records)
    found = [item.candidates[item.gold].strip() for item in items(load_task(path))]
    assert found == (golds.split() * 2)[: len(records)]


def test_hub_source_streams_a_split(folder: Path) -> None:
    # A local folder is a valid dataset name for the Hub's client, so this needs no network.
    (folder / "mood.yaml").rename(folder.parent / "mood.yaml")
    task = folder.parent / "mood.yaml"
    task.write_text(TASK.replace("file: data.jsonl", f"hub: {{name: {folder}, split: train}}"), encoding="utf-8")
    assert [item.gold for item in items(load_task(task))] == [0, 1, 1]
    task.write_text(task.read_text(encoding="utf-8").replace("split: train", "split: nope"), encoding="utf-8")
    text = message(task)
    assert "cannot read" in text
    assert "source.hub" in text


def test_items_render_fields_as_plain_text(folder: Path) -> None:
    first, second, _ = items(load_task(folder / "mood.yaml"))
    assert first == Item("mood/0", "Text: It rains.\nMood:", (" bad", " good"), 0)
    assert second.context == "Text: <b>{{ 1 + 1 }}</b>\nMood:"


def test_candidates_per_item(folder: Path) -> None:
    first = next(items(load_task(folder / "mood.yaml"), "given"))
    assert first.candidates == (" I cry.", " I dance.")


def test_limit_takes_the_first_items(folder: Path) -> None:
    task = load_task(folder / "mood.yaml")
    assert list(items(task, limit=2)) == list(items(task))[:2]
    assert len(list(items(task, limit=99))) == 3
    with pytest.raises(BrdError, match="limit should be at least 1"):
        items(task, limit=0)


def test_csv_and_parquet_give_the_same_items(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records: list[dict[str, object]] = [{"text": f"é, {n}", "mood": n % 2} for n in range(3)]
    task = TASK.replace("sad:", "0:").replace("glad:", "1:")
    expected = list(items(load_task(write(folder, task, records))))
    pq.write_table(pa.Table.from_pylist(records), folder / "data.parquet")
    (folder / "data.csv").write_text('text,mood\n"é, 0",0\n"é, 1",1\n"é, 2",0\n', encoding="utf-8")
    for suffix in ("parquet", "csv"):
        assert list(items(load_task(write(folder, task.replace("data.jsonl", f"data.{suffix}"), records)))) == expected


def test_booleans_and_their_words_are_the_same_label(folder: Path) -> None:
    task = TASK.replace("sad:", "false:").replace("glad:", "true:")
    path = write(folder, task, [{"text": "a", "mood": mood} for mood in (True, False, "true")])
    assert [item.gold for item in items(load_task(path))] == [1, 0, 1]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("glad: 1", "glad: 2", 16, "labels.glad"),
        ("glad: 1", "glad: true", 16, "labels.glad"),
        ("version: 1", "version: 1\nvresion: 2", 3, "did you mean 'version'?"),
        ('    prompt: "Text', '    promt: "Text', 8, "did you mean 'prompt'?"),
        ("label: mood\n", "", None, "'label' is missing"),
        ("{{ text }}\\nMood:", "{{ text }\\nMood:", 8, "not valid Jinja"),
        ('Mood:"', 'Mood: "', 8, "ends in whitespace"),
        ('[" bad", " good"]', '[" bad", "good"]', 9, "one space"),
        ('[" bad", " good"]', '[" bad", "  good"]', 9, "one space"),
        ('[" bad", " good"]', '[" bad", " "]', 9, "candidate 1 is empty"),
        ('[" bad", " good"]', '[" bad", " bad"]', 9, "the same"),
        ('[" bad", " good"]', '[" bad"]', 9, "at least 2"),
        ('[" bad", " good"]', "[no, yes]", 9, "valid string"),
        ("  file: data.jsonl", "  file: data.txt", 5, ".jsonl"),
        ("  file: data.jsonl", "  file: data.jsonl\n  embedded: glue", 4, "exactly one"),
        ("name: mood", "name: [mood", 2, "not valid YAML"),
    ],
)
def test_mistakes_in_a_task_file_are_named_with_their_line(
    folder: Path, old: str, new: str, line: int | None, words: str
) -> None:
    assert old in TASK
    path = write(folder, TASK.replace(old, new, 1), RECORDS)
    text = message(path)
    assert text.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert words in text


@pytest.mark.parametrize(
    ("template", "change", "words"),
    [
        ("plain", {"mood": "angry"}, "label 'angry' is not among labels (sad, glad)"),
        ("plain", {"mood": None}, "no label in field 'mood'"),
        ("plain", {"text": None}, "'text' is undefined"),
        ("given", {"first": ""}, "candidate 0 is empty"),
        ("given", {"first": " I cry."}, "one space"),
        ("given", {"second": "I cry. "}, "two candidates are the same (' I cry.')"),
    ],
)
def test_records_that_do_not_fit_are_named(folder: Path, template: str, change: dict[str, object], words: str) -> None:
    path = write(folder, TASK, [RECORDS[1], {**RECORDS[0], **change}])
    text = message(path, template)
    assert f"task mood, template {template}, item 1: " in text
    assert words in text


@pytest.mark.parametrize(
    ("line", "words"),
    [(b'{"text": }', "not valid JSON"), (b"[1]", "JSON object"), (b'{"text": "\xff"}', "not UTF-8")],
)
def test_broken_lines_are_named(folder: Path, line: bytes, words: str) -> None:
    with (folder / "data.jsonl").open("ab") as file:
        file.write(b"\n" + line + b"\n")
    text = message(folder / "mood.yaml")
    assert text.startswith(f"{folder / 'data.jsonl'}:5: ")
    assert words in text


def test_broken_csv_and_parquet_are_named(folder: Path) -> None:
    (folder / "data.csv").write_text("text,mood\na,sad\nb\n", encoding="utf-8")
    assert f"{folder / 'data.csv'}:3: should have 2 fields" in message(
        write(folder, TASK.replace(".jsonl", ".csv"), RECORDS)
    )
    (folder / "data.parquet").write_bytes(b"PAR1 no")
    assert f"{folder / 'data.parquet'}: not readable" in message(
        write(folder, TASK.replace(".jsonl", ".parquet"), RECORDS)
    )


def test_missing_things_are_named(folder: Path) -> None:
    (folder / "data.jsonl").unlink()
    assert str(folder / "data.jsonl") in message(folder / "mood.yaml")
    (folder / "data.jsonl").touch()
    assert "no records" in message(folder / "mood.yaml")
    assert "did you mean 'plain'?" in message(folder / "mood.yaml", "plane")
    with pytest.raises(BrdError, match="unknown task 'sst'; did you mean 'sst2'"):
        load_task("sst")
    with pytest.raises(BrdError, match="no such task file"):
        load_task(folder / "gone.yaml")
    embedded = write(folder, TASK.replace("file: data.jsonl", "embedded: glue/rt/validation"), RECORDS)
    assert "did you mean 'glue/rte/validation'?" in message(embedded)


def test_a_template_cannot_reach_into_the_interpreter(folder: Path) -> None:
    path = write(folder, TASK.replace("{{ text }} So", "{{ text.__class__.__mro__ }}"), RECORDS)
    assert "unsafe" in message(path, "given")
