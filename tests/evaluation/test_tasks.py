"""Task files: the shipped ones with their data, other sources, and an error that says where for what can be wrong."""

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from brd.errors import BrdError
from brd.evaluation.items import Item, items
from brd.evaluation.tasks import SHIPPED, load_task, shipped_tasks

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
labels: {sad: 0, glad: 1}
citation: None.
licence: CC0
"""
LABELS = "label: mood\nlabels: {sad: 0, glad: 1}\n"
RECORDS: list[dict[str, object]] = [
    {"text": "It rains.", "mood": "sad", "first": "I cry.", "second": " I dance."},
    {"text": "<b>{{ 1 + 1 }}</b>", "mood": "glad", "first": "a", "second": "b"},
    {"text": "We won.", "mood": "glad", "first": "c", "second": "d"},
]

# Which candidate is right in how many items.
BALANCES = {
    "arc_challenge": (64, 73, 78, 83, 1),
    "arc_easy": (158, 152, 142, 118),
    "boolq": (1237, 2033),
    "cb": (23, 28, 5),
    "copa": (55, 45),
    "hellaswag": (2515, 2485, 2584, 2458),
    "mrpc": (129, 279),
    "openbookqa": (126, 138, 110, 126),
    "piqa": (910, 928),
    "rte": (146, 131),
    "sciq": (268, 275, 232, 225),
    "social_iqa": (643, 655, 656),
    "sst2": (428, 444),
    "winogrande": (628, 639),
}
# Items with fewer or more candidates than the others.
WIDTHS = {"arc_challenge": {3: 3, 5: 1}, "arc_easy": {3: 1, 5: 2}, "sciq": {3: 2}, "social_iqa": {2: 5}}


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


def gold(item: Item) -> int:
    """The index of the one right candidate."""
    assert sorted(item.credits) == [0.0] * (len(item.candidates) - 1) + [1.0]
    return item.credits.index(1.0)


# --- The shipped files


@pytest.mark.parametrize("name", shipped_tasks())
def test_each_shipped_task_is_named_after_its_file_and_has_two_templates_with_what_pmi_needs(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.metric == "token_mean"
    assert len(task.templates) >= 2
    assert all(template.unconditional for template in task.templates.values())


def test_each_embedded_task_has_a_balance_here() -> None:
    assert set(BALANCES) == {name for name in shipped_tasks() if load_task(name).source.embedded}


@pytest.mark.parametrize("name", BALANCES)
def test_embedded_tasks_have_the_size_and_balance_that_their_comment_says_under_every_template(name: str) -> None:
    comment = re.search(r"validation # (\d+) items(.*)", (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    assert comment is not None
    size, said = int(comment[1]), {int(number) for number in re.findall(r"\d+", comment[2])}
    assert size == sum(BALANCES[name])
    assert said >= set(BALANCES[name])
    task = load_task(name)
    for number, template in enumerate(task.templates):
        # Ten thousand items take a second: under other templates the first ones of its two kinds of text will do.
        short = name == "hellaswag" and number > 0
        found = list(islice(items(task, template, pmi=True), 3300 if short else None))
        assert all(item.context == item.context.strip() and item.unconditional for item in found)
        assert all(text == f" {text.strip()}" for item in found for text in item.candidates)
        assert [item.id for item in found] == [f"{name}/{index}" for index in range(len(found))]
        if not short:
            right = Counter(map(gold, found))
            assert tuple(right[index] for index in range(max(right) + 1)) == BALANCES[name]
            widths = Counter(len(item.candidates) for item in found)
            assert {width: n for width, n in widths.items() if n < size / 2} == WIDTHS.get(name, {})


@pytest.mark.parametrize(
    ("name", "template", "number", "context", "right"),
    [
        ("sst2", "review", 0, "Review: it 's a charming and often affecting journey .\nSentiment:", " positive"),
        ("mrpc", "question", 1, "Sentence 1: Magnarelli said Racicot hated the Iraqi", " no"),
        ("copa", "connective", 0, "The man turned on the faucet so", " water flowed from the spout."),
        (
            "copa",
            "question",
            2,
            "The woman retired.\nQuestion: What happened as a result?",
            " She received her pension.",
        ),
        ("copa", "connective", 3, "I wanted to conserve energy so", " I shut off the light in the unoccupied room."),
        ("hellaswag", "activity", 0, "Roof shingle removal: A man is sitting on a roof. He", " starts pulling up roof"),
        (
            "hellaswag",
            "topic",
            3243,
            "Topic: Personal Care and Style\nText: How to become a fashion consultant. Obtain your high school diploma "
            "or ged. This job requires",
            " Earn a bachelor's degree in a fashion-related field. Degrees for the fashion industry include art,",
        ),
        ("arc_easy", "question", 0, "Question: Which technology was developed most recently?", " cellular telephone"),
        ("arc_challenge", "school", 1, "In a science test at school: High-pressure systems", " drought"),
        ("openbookqa", "plain", 3, "If a person walks in the opposite direction of a compass arrow", " south"),
        ("sciq", "question", 0, "Question: Who proposed the theory of evolution", " darwin"),
        ("sciq", "exam", 3, "Read this: A wetland is an area that is wet for all or part of the year.", " wetland"),
        ("winogrande", "sentence", 0, "Sarah was a much better surgeon than Maria so", " Maria always got the easier "),
        ("winogrande", "sentence", 589, "Research came easy to Monica as compared to Erin because", " Erin's father"),
        ("winogrande", "question", 1, "Sarah was a much better surgeon than Maria so _ always", " Sarah"),
        ("social_iqa", "question", 0, "Tracy didn't go home that evening", " Find somewhere to go"),
        ("social_iqa", "story", 669, "Story: Tracy enjoyed constructing things and made a table.", " accomplished"),
        (
            "piqa",
            "question",
            0,
            "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:",
            " Provide",
        ),
        ("boolq", "question", 0, "All biomass goes through at least some of these steps", " no"),
        ("rte", "question", 0, "Dana Reeve, the widow of the actor Christopher Reeve, has died", " no"),
        ("cb", "question", 0, "Valence the void-brain,", " no"),
    ],
)
def test_the_right_candidate_of_known_items(name: str, template: str, number: int, context: str, right: str) -> None:
    item = next(islice(items(load_task(name), template), number, None))
    assert item.context.startswith(context)
    assert item.candidates[gold(item)].startswith(right)


def test_no_mark_of_the_articles_is_left_in_hellaswag() -> None:
    shown = "\n".join(text for item in items(load_task("hellaswag")) for text in (item.context, *item.candidates))
    assert not re.search(r"\[(header|title|step|substeps)\]", shown)


def test_answers_that_stand_twice_count_once() -> None:
    assert next(islice(items(load_task("social_iqa")), 669, None)).candidates == (" accomplished", " proud")
    assert next(islice(items(load_task("sciq")), 479, None)).candidates == (" blue", " pink", " white")


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
    found = [item.candidates[gold(item)].strip() for item in items(load_task(path))]
    assert found == (golds.split() * 2)[: len(records)]
    for template in load_task(path).templates:
        assert len(list(items(load_task(path), template, pmi=True))) == len(records)


# --- Sources


def test_hub_source_streams_a_split(folder: Path) -> None:
    # A local folder is a valid dataset name for the Hub's client, so this needs no network.
    (folder / "mood.yaml").rename(folder.parent / "mood.yaml")
    task = folder.parent / "mood.yaml"
    task.write_text(TASK.replace("file: data.jsonl", f"hub: {{name: {folder}, split: train}}"), encoding="utf-8")
    assert [gold(item) for item in items(load_task(task))] == [0, 1, 1]
    task.write_text(task.read_text(encoding="utf-8").replace("split: train", "split: nope"), encoding="utf-8")
    text = message(task)
    assert "cannot read" in text
    assert "source.hub" in text


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
    embedded = write(folder, TASK.replace("file: data.jsonl", "embedded: glue/rt/validation"), RECORDS)
    assert "did you mean 'glue/rte/validation'?" in message(embedded)


def test_unknown_tasks_are_told_the_nearest_name(folder: Path) -> None:
    with pytest.raises(BrdError, match="unknown task 'sst'; did you mean 'sst2'"):
        load_task("sst")
    with pytest.raises(BrdError, match="unknown task 'arc_chalenge'; did you mean 'arc_challenge'"):
        load_task("arc_chalenge")
    with pytest.raises(BrdError, match="no such task file"):
        load_task(folder / "gone.yaml")


# --- Mistakes in a file


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("glad: 1", "glad: 2", 14, "labels.glad: candidate 2 is asked for, but template plain has only 2"),
        ("glad: 1", "glad: true", 14, "valid integer"),
        ("{sad: 0, glad: 1}", "mood_of(", 14, "labels: not valid Jinja"),
        (LABELS, "credits: '[1, 0'\n", 13, "credits: not valid Jinja"),
        (LABELS, "label: mood\n", None, "either the keys label and labels, or the key credits"),
        (LABELS, "labels: moods\n", None, "either the keys label and labels, or the key credits"),
        (LABELS, "", None, "either the keys label and labels, or the key credits"),
        (LABELS, f"{LABELS}credits: '[1, 0]'\n", 15, "either the keys label and labels, or the key credits"),
        ("version: 1", "version: 1\nvresion: 2", 3, "did you mean 'version'?"),
        ("version: 1\n", "", None, "key 'version' is missing"),
        ("name: mood", "name: my mood", 1, "name: "),
        ("about: Mood of a sentence.", "about: ''", 3, "about: "),
        ("label: mood", "label: mood\nmetric: accuracy", 14, "metric: "),
        ("label: mood", "label: mood\nfields: {upper: '{{ text | '}", 14, "fields.upper: not valid Jinja"),
        ("label: mood", "label: mood\nfew_shot:\n  count: -1", 15, "few_shot.count: "),
        ("label: mood", "label: mood\nfew_shot:\n  shots: 1", 15, "unknown key 'few_shot.shots'"),
        ("label: mood", "label: mood\nfew_shot:\n  source: {file: a.txt}", 15, "few_shot.source.file: should end in"),
        ('    prompt: "Text', '    promt: "Text', 8, "did you mean 'prompt'?"),
        ("{{ text }}\\nMood:", "{{ text }\\nMood:", 8, "templates.plain.prompt: not valid Jinja"),
        ('Mood:"', 'Mood: "', 8, "ends in whitespace"),
        (
            'Mood:"',
            'Mood:"\n    unconditional: "Mood: "',
            9,
            "templates.plain.unconditional: the context ends in white",
        ),
        ('Mood:"', 'Mood:"\n    unconditional: "{{"', 9, "templates.plain.unconditional: not valid Jinja"),
        ('[" bad", " good"]', '[" bad", "good"]', 9, "one space"),
        ('[" bad", " good"]', '[" bad", "  good"]', 9, "one space"),
        ('[" bad", " good"]', '[" bad", " "]', 9, "candidate 1 is empty"),
        ('[" bad", " good"]', '[" bad", " bad"]', 9, "the same"),
        ('[" bad", " good"]', '[" bad"]', 9, "at least 2"),
        ('[" bad", " good"]', "[no, yes]", 9, "valid string"),
        ('[" bad", " good"]', "moods[", 9, "templates.plain.candidates: not valid Jinja"),
        ('[" bad", " good"]', '["a", "a"]\n    verbatim: true', 9, "the same"),
        ('[" bad", " good"]', '["a", " ", "c"]\n    verbatim: true', 9, "candidate 1 is empty"),
        ("sad: 0, glad: 1}", "sad: 2}", 14, "labels.sad: candidate 2 is asked for"),
        ("  file: data.jsonl", "  file: data.txt", 5, ".jsonl"),
        ("  file: data.jsonl", "  file: data.jsonl\n  embedded: glue", 4, "exactly one"),
        ("name: mood", "name: [mood", 2, "not valid YAML"),
    ],
)
def test_mistakes_in_a_task_file_are_named_with_their_line_and_key(
    folder: Path, old: str, new: str, line: int | None, words: str
) -> None:
    assert old in TASK
    path = write(folder, TASK.replace(old, new, 1), RECORDS)
    found = message(path)
    assert found.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert words in found


def test_a_file_that_is_no_mapping_is_named(folder: Path) -> None:
    path = write(folder, "- a\n- b\n", RECORDS)
    assert message(path).startswith(f"{path}: a task is a YAML mapping")


def test_a_template_cannot_reach_into_the_interpreter(folder: Path) -> None:
    path = write(folder, TASK.replace("{{ text }} So", "{{ text.__class__.__mro__ }}"), RECORDS)
    assert "unsafe" in message(path, "given")


def test_a_shipped_task_on_another_copy_of_its_data(tmp_path: Path) -> None:
    data = tmp_path / "dev.jsonl"
    rows = [
        {"premise": "It rained.", "hypothesis": "It was wet.", "label": label} for label in ("entailment", "neutral")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = list(items(load_task(f"xnli={data}"), "statement"))
    assert [item.id for item in found] == ["xnli/0", "xnli/1"]
    assert [item.credits.index(1.0) for item in found] == [0, 1]
    for name, message in (
        (f"xnli={tmp_path}/nowhere.jsonl", "no such file of data"),
        (f"xnli={tmp_path}", "no such file"),
    ):
        with pytest.raises(BrdError, match=message):
            load_task(name)
    (tmp_path / "dev.txt").write_text("x", encoding="utf-8")
    with pytest.raises(BrdError, match=r"should end in \.jsonl"):
        load_task(f"xnli={tmp_path}/dev.txt")
