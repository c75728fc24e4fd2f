"""What was read, handed on: every format goes back to the same readings, and a target is whole or absent."""

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_runs import Brd, Scripted, everything, failed, ok, read_into, recipe_in

from brd import recipe as recipes
from brd.composing.compose import compose_lessons
from brd.composing.documents import lessons
from brd.composing.packing import TokenRows
from brd.errors import BrdError
from brd.reading import export as to
from brd.reading import reader
from brd.reading.behavior import load_behaviors
from brd.reading.chosen import ReadParagraph
from brd.reading.reader import Readings
from brd.reading.store import Reading, with_judgement
from brd.text.sentences import Span

BEHAVIORS = load_behaviors(["ner", "qra"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exporting")
    return read_into(folder / "run", recipe_in(folder))


def json_lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line]
    assert lines == text.splitlines()
    return [json.loads(line) for line in lines]


def loaded(*source: Any, tmp_path: Path, **options: Any) -> Any:
    from datasets import load_dataset

    return load_dataset(*source, cache_dir=str(tmp_path / "cache"), **options)


def test_a_parquet_file_gives_another_run_all_its_readings(
    run: Path, brd_here: Brd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "known.parquet"
    said = ok(brd_here("export", run, "--format", "parquet", "--out", out, "--note", "Our own sentences, CC0."))
    found = everything(run)
    keys = {reading.key for *_, reading in found}
    # Most sentences stand in every document: one answer each, many places.
    assert len(keys) < len(found)
    assert f"{len(keys)} readings" in said
    assert pq.read_schema(out).metadata[b"note"] == b"Our own sentences, CC0."
    assert sorted(pq.read_table(out)["key"].to_pylist()) == sorted(keys)

    asked: list[str] = []
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: Scripted(asked))
    recipe = recipe_in(tmp_path)
    ok(brd_here("read", recipe, "--out", "again", "--set", "reading.known=[known.parquet]"))
    assert asked == []
    assert everything(tmp_path / "again") == found

    # Only what is verified, of one behavior: the rest is asked again.
    options = ("--verified", "--behaviors", "ner", "--note", "x", "--force")
    ok(brd_here("export", run, "--format", "parquet", "--out", out, *options))
    ok(brd_here("read", recipe, "--out", "third", "--set", "reading.known=[known.parquet]"))
    verified = {r.key for *_, r in found if r.verdict == "verified" and r.behavior == "ner"}
    assert len(asked) == len(keys - verified)
    assert everything(tmp_path / "third") == found


def test_json_lines_hold_every_reading_in_its_place(run: Path, brd_here: Brd, tmp_path: Path) -> None:
    out = tmp_path / "new" / "readings.jsonl"
    said = ok(brd_here("export", run, "--format", "jsonl", "--out", out, "--all", "--part", "all"))
    found = {(p.document, p.index, n, r.behavior): (p, r) for p, n, r in everything(run)}
    records = json_lines(out)
    assert f"{len(records)} records" in said
    assert len(records) == len(found)
    for record in records:
        place = tuple(record[name] for name in ("document", "paragraph", "sentence", "behavior"))
        paragraph, reading = found.pop(place)
        assert record["text"] == paragraph.sentence(record["sentence"])
        assert record["content"] == reading.parsed()
        assert record["part"] == ("held_out" if paragraph.held_out else "train")
        for name in ("verdict", "reason", "raw", "teacher", "prompt_hash", "key"):
            assert record[name] == getattr(reading, name)
    verdicts = Counter(record["verdict"] for record in records)
    assert min(verdicts[name] for name in ("verified", "rejected", "malformed")) > 0

    said = ok(brd_here("export", run, "--format", "jsonl", "--out", out, "--force"))
    plain = json_lines(out)
    assert plain == [r for r in records if r["verdict"] == "verified" and r["part"] == "train"]
    assert "not verified left out" in said
    data = loaded("json", data_files=str(out), split="train", tmp_path=tmp_path)
    assert [row["raw"] for row in data] == [record["raw"] for record in plain]


def test_every_record_says_the_language_of_its_sentence(
    brd_here: Brd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"source": "corpus.jsonl", "layout": "blank_line", "held_out": 0.3, "language_field": "lang"}
    recipe = recipe_in(tmp_path, text=text)
    own = {"en": "The ferry number {n} was late.", "de": "Die Fähre Nummer {n} kam spät."}
    records = [
        {"lang": lang, "text": f"Mira 1 Oslo 2 Bergen 3.\n\n{own[lang].format(n=n)}"} for n in range(12) for lang in own
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    run = read_into(tmp_path / "run", recipe)
    found = everything(run)

    def told(language: str | None = None) -> None:
        """Each format with the languages of the corpus, or this one in all."""
        places = Counter((r.text, r.behavior, language or p.language if language != "" else None) for p, _, r in found)
        options = ("--all", "--part", "all", "--force")
        ok(brd_here("export", "run", "--format", "jsonl", "--out", "all.jsonl", *options))
        lines = json_lines(tmp_path / "all.jsonl")
        assert Counter((r["text"], r["behavior"], r["language"]) for r in lines) == places
        ok(brd_here("export", "run", "--format", "chat", "--out", "chat.jsonl", *options))
        lines = [r for r in json_lines(tmp_path / "chat.jsonl") if r["messages"][0]["content"].startswith("Mira")]
        mine = {key: n for key, n in places.items() if key[0].startswith("Mira")}
        assert Counter((r["messages"][0]["content"], r["behavior"], r["language"]) for r in lines) == mine
        ok(brd_here("export", "run", "--format", "parquet", "--out", "known.parquet", "--note", "x", "--force"))
        rows = pq.read_table(tmp_path / "known.parquet").to_pylist()
        # A sentence that stands in texts of both languages: the one that is met first.
        first = {(text, behavior): code for text, behavior, code in reversed(places)}
        assert {(r["text"], r["behavior"]): r["language"] for r in rows} == first
        assert len(rows) == len(first) == 2 * 25
        ok(brd_here("push", "run", "me/x", "--licence", "cc0-1.0", "--dry-run", "--force"))
        rows = [r for file in (run / "export" / "data").iterdir() for r in pq.read_table(file).to_pylist()]
        assert Counter((r["text"], r["behavior"], r["language"]) for r in rows) == places

    told()
    # An export of before has no such column, and gives its readings all the same.
    whole = pq.read_table(tmp_path / "known.parquet")
    pq.write_table(whole.drop_columns(["language"]), tmp_path / "before.parquet")
    asked: list[str] = []
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: Scripted(asked))
    for name in ("known", "before"):
        ok(brd_here("read", recipe, "--out", name, "--set", f"reading.known=[{name}.parquet]"))
        assert everything(tmp_path / name) == found
    assert asked == []
    # Nor does a run of before know it.
    paragraphs = pq.read_table(run / "readings" / "paragraphs.parquet")
    pq.write_table(paragraphs.drop_columns(["language"]), run / "readings" / "paragraphs.parquet")
    told("")


def test_conversations_give_the_readings_back_by_their_parsers(run: Path, brd_here: Brd, tmp_path: Path) -> None:
    out = tmp_path / "chat.jsonl"
    ok(brd_here("export", run, "--format", "chat", "--out", out))
    found = {(p.document, p.index, n, r.behavior): r for p, n, r in everything(run, False) if r.verdict == "verified"}
    records = json_lines(out)
    assert len(records) == len(found)
    for record in records:
        user, assistant = record["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        reading = found.pop(tuple(record[name] for name in ("document", "paragraph", "sentence", "behavior")))
        behavior = BEHAVIORS[reading.behavior]
        assert user["content"] == reading.text
        assert assistant["content"].startswith(behavior.cue)
        again = behavior.judge(assistant["content"].removeprefix(behavior.cue), user["content"])
        assert again.content == reading.parsed()
    assert loaded("json", data_files=str(out), split="train", tmp_path=tmp_path)["messages"] == [
        record["messages"] for record in records
    ]


def test_a_conversation_about_a_paragraph_has_its_sentences_in_order(run: Path, brd_here: Brd, tmp_path: Path) -> None:
    out = tmp_path / "chat.jsonl"
    ok(brd_here("export", run, "--format", "chat", "--out", out, "--level", "paragraph", "--behaviors", "ner"))
    texts = {(p.document, p.index): p for p, *_ in everything(run, False)}
    records = json_lines(out)
    for record in records:
        assert [m["role"] for m in record["messages"]] == ["user", "assistant"] * (len(record["messages"]) // 2)
        paragraph = texts[record["document"], record["paragraph"]]
        given = "\n\n".join(m["content"] for m in record["messages"][::2])
        sentences = [paragraph.sentence(n) for n in range(len(paragraph.spans))]
        assert given == "\n\n".join(sentences[: given.count("\n\n") + 1])
    # The ferry's sentence has no usable reading: it is given together with the next one.
    assert any(m["content"].startswith("The ferry to Oslo was late again.\n\n") for r in records for m in r["messages"])


pieces = st.sampled_from(
    [*' ;:().?"\\\r\t\u2028\x85\x1e', "none", "\nAnswer:", "Question:", "Oslo", "person", "é", "\0", "🚢", "</s>"]
)
# No half surrogate pairs: neither a corpus nor an answer can hold one.
words = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(pieces, max_size=20).map("".join))
answers = st.one_of(
    words,
    words.map(lambda text: f" Oslo (location: {text}); {text} (person)"),
    st.tuples(words, words).map(lambda pair: f" {pair[0]} Oslo?\nAnswer: {pair[1]} Oslo"),
)


@pytest.mark.parametrize("name", ["ner", "qra"])
@settings(deadline=None)
@given(raw=answers, before=words, finished=st.booleans())
def test_any_text_comes_back_from_a_line(name: str, raw: str, before: str, finished: bool) -> None:
    sentence = before + " Oslo"
    behavior = BEHAVIORS[name]
    blank = Reading("k", "d\n", 1, 0, 0, 4, sentence, name, raw, finished, None, "", "", 0, 0, "t", "p", 1, 1)
    reading = with_judgement(blank, behavior.judge(raw, sentence, finished=finished))
    paragraph = ReadParagraph("d\n", 1, sentence, False, (Span(0, len(sentence)),), (0,))
    line = to.as_line(to.record(paragraph, 0, reading))
    assert len(line.splitlines()) == 1
    back = json.loads(line)
    assert (back["text"], back["raw"], back["content"]) == (sentence, raw, reading.parsed())

    run = to.ReadRun(Path(), recipes.Recipe(name="r"))
    for verified_only in (True, False):
        selection = to.Selection((name,), "train", verified_only)
        with pytest.MonkeyPatch.context() as patch:
            # Loading them anew a hundred times takes seconds.
            patch.setattr(to, "load_behaviors", lambda names, *_: {name: BEHAVIORS[name] for name in names})
            talk = list(to.conversations(run, [(paragraph, {(0, name): reading})], selection, "sentence", Counter()))
        said = [json.loads(to.as_line(one))["messages"] for one in talk]
        if reading.verdict == "verified":
            user, assistant = said[0]
            again = behavior.judge(assistant["content"].removeprefix(behavior.cue), user["content"])
            assert (user["content"], again.content) == (sentence, reading.parsed())
        else:
            usable = not verified_only and raw.strip()
            wanted = [f"{behavior.cue} {raw.strip()}"] if usable else []
            assert [assistant["content"] for _, assistant in said] == wanted


def test_trl_gets_the_lessons_that_are_packed(run: Path, brd_here: Brd, tmp_path: Path, tokenizer: Any) -> None:
    out = tmp_path / "lessons"
    said = ok(brd_here("export", run, "--format", "trl", "--out", out, "--part", "all"))
    recipe = recipes.load(str(run / "recipe.yaml"))
    readings = Readings(recipe, run / "readings")
    meta = compose_lessons(recipe, readings, tokenizer, tmp_path / "composed")
    rows = TokenRows(tmp_path / "composed")
    stream = np.concatenate([rows[n] for n in range(len(rows))])[: meta["unique_tokens"]]
    written = [record["text"] for record in json_lines(out / "train.jsonl")]
    assert tokenizer.decode(stream) == "".join(text + tokenizer.eos_token for text in written)
    assert f"with {meta['readings']} readings" in said

    data = loaded(str(out), tmp_path=tmp_path)
    assert {name: split.column_names for name, split in data.items()} == {"train": ["text"], "test": ["text"]}
    assert list(data["train"]["text"]) == written
    held_out = [lesson.text for lesson in lessons(recipe, readings, held_out=True)]
    assert list(data["test"]["text"]) == held_out
    assert sorted(path.name for path in out.iterdir()) == ["test.jsonl", "train.jsonl"]


def test_trl_lessons_of_a_behavior_and_level_of_ones_own(run: Path, brd_here: Brd, tmp_path: Path) -> None:
    out = tmp_path / "lessons"
    options = ("--behaviors", "ner", "--level", "sentence", "--all")
    ok(brd_here("export", run, "--format", "trl", "--out", out, *options))
    recipe = recipes.load(
        str(run / "recipe.yaml"),
        ["composing.mix.qra=0", "composing.level=sentence", "composing.verified_only=false"],
    )
    wanted = [lesson.text for lesson in lessons(recipe, Readings(recipe, run / "readings"))]
    assert [record["text"] for record in json_lines(out / "train.jsonl")] == wanted
    assert any("Entities: garbage" in text for text in wanted)
    assert not any("Question:" in text for text in wanted)


@pytest.mark.parametrize("level", ["sentence", "paragraph"])
def test_trl_prompts_and_completions(run: Path, brd_here: Brd, tmp_path: Path, level: str) -> None:
    out = tmp_path / "pairs"
    ok(brd_here("export", run, "--format", "trl", "--chat", "--out", out, "--level", level))
    data = loaded(str(out), split="train", tmp_path=tmp_path)
    assert data.column_names == ["prompt", "completion"]
    verified = [r for *_, r in everything(run, False) if r.verdict == "verified"]
    assert len(data) == len(verified)
    for row in data:
        assert [m["role"] for m in row["completion"]] == ["assistant"]
        assert row["prompt"][-1]["role"] == "user"
    assert max(len(row["prompt"]) for row in data) == (1 if level == "sentence" else 3)


@pytest.mark.parametrize("format_", ["trl", "chat", "pairs"])
def test_trls_own_trainer_takes_it(run: Path, brd_here: Brd, tmp_path: Path, tiny_model: Path, format_: str) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoTokenizer

    out = tmp_path / ("chat.jsonl" if format_ == "chat" else "data")
    options = ["--format", "chat"] if format_ == "chat" else ["--format", "trl"]
    ok(brd_here("export", run, *options, "--out", out, *(["--chat"] if format_ == "pairs" else [])))
    source = {"data_files": str(out)} if out.is_file() else {"data_dir": str(out)}
    data = loaded("json", split="train", tmp_path=tmp_path, **source)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "trained"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to=[], max_length=128, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model=str(tiny_model), args=arguments, train_dataset=data, processing_class=tokenizer)
    assert trainer.train().training_loss > 0


def test_a_few_sentences_at_a_time_are_the_same(
    run: Path, brd_here: Brd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(name: str) -> bytes:
        ok(brd_here("export", run, "--format", "jsonl", "--out", name, "--all", "--part", "all"))
        return (tmp_path / name).read_bytes()

    whole = written("whole.jsonl")
    monkeypatch.setattr(reader, "GROUP", 1)
    assert written("piecemeal.jsonl") == whole


def test_what_the_recipe_no_longer_wants_stays_in_the_store_alone(brd_here: Brd, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    read_into(tmp_path / "run", recipe, "reading.shard_rows=7")
    read_into(tmp_path / "run", recipe, "reading.shard_rows=7", "reading.sentences=5", "reading.behaviors=[qra]")
    wanted = [r.key for *_, r in everything(tmp_path / "run")]
    for format_, *options in (("jsonl", "--all", "--part", "all"), ("parquet", "--note", "x")):
        ok(brd_here("export", "run", "--format", format_, "--out", f"out.{format_}", *options))
    assert sorted(record["key"] for record in json_lines(tmp_path / "out.jsonl")) == sorted(wanted)
    assert sorted(pq.read_table(tmp_path / "out.parquet")["key"].to_pylist()) == sorted(set(wanted))
    stored = {
        key for shard in (tmp_path / "run").rglob("readings-*") for key in pq.read_table(shard)["key"].to_pylist()
    }
    assert set(wanted) < stored


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--format", "jsn", "--out", "x"], ["--format jsn", "'jsonl'"]),
        (["{run}", "--format", "jsonl"], ["--out"]),
        (["nowhere", "--format", "jsonl", "--out", "x"], ["nowhere", "no such folder", "RUN is a folder"]),
        (["plain", "--format", "jsonl", "--out", "x"], ["plain", "no run folder", "recipe.yaml"]),
        (["unread", "--format", "jsonl", "--out", "x"], ["unread", "step read", "brd read"]),
        (["{run}", "--format", "jsonl", "--out", "there.jsonl"], ["there.jsonl", "exists already", "--force"]),
        (["{run}", "--format", "jsonl", "--out", "plain"], ["plain", "is a folder"]),
        (["{run}", "--format", "trl", "--out", "there.jsonl", "--force"], ["there.jsonl", "is a file"]),
        (["{run}", "--format", "jsonl", "--out", "there.jsonl/x"], ["there.jsonl", "cannot be written"]),
        (["{run}", "--format", "trl", "--out", "plain", "--force"], ["plain", "thesis.txt", "other files"]),
        (["{run}", "--format", "jsonl", "--out", "{run}/readings/x", "--force"], ["own readings folder"]),
        (["{run}", "--format", "jsonl", "--out", "x", "--part", "test"], ["--part test", "held_out"]),
        (["{run}", "--format", "jsonl", "--out", "x", "--behaviors", "ner,qa"], ["--behaviors qa", "'qra'"]),
        (["{run}", "--format", "chat", "--out", "x", "--level", "word"], ["--level word", "paragraph"]),
        (["{run}", "--format", "jsonl", "--out", "x", "--level", "sentence"], ["--level", "chat or trl"]),
        (["{run}", "--format", "chat", "--out", "x", "--chat"], ["--chat", "--format trl"]),
        (["{run}", "--format", "parquet", "--out", "x"], ["--note", "licence"]),
        (["{run}", "--format", "chat", "--out", "x", "--note", "CC0"], ["--note", "parquet"]),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    run: Path, brd_here: Brd, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "there.jsonl").write_text("precious")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "thesis.txt").write_text("precious")
    (tmp_path / "unread").mkdir()
    (tmp_path / "unread" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    before = sorted(tmp_path.rglob("*"))
    failed(brd_here("export", *(a.format(run=run) for a in arguments)), *words)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.jsonl").read_text() == (tmp_path / "plain" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("format_", ["jsonl", "chat", "trl"])
def test_nothing_verified_and_nothing_left_behind(brd_here: Brd, tmp_path: Path, format_: str) -> None:
    recipe = recipe_in(tmp_path)
    (tmp_path / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"text": f"The ferry number {n} was late."}) for n in range(12)), encoding="utf-8"
    )
    read_into(tmp_path / "run", recipe)
    done = brd_here("export", "run", "--format", format_, "--out", "out")
    failed(done, "no verified readings of ner, qra in part train", "--all")
    failed(brd_here("push", "run", "me/x", "--licence", "cc0-1.0", "--verified", "--dry-run"), "no verified readings")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("out", "export") or path.name.startswith(".")]
    ok(brd_here("export", "run", "--format", format_, "--out", "out", "--all"))


def test_a_failure_half_way_leaves_the_old_target_as_it_was(
    run: Path, brd_here: Brd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(brd_here("export", run, "--format", "jsonl", "--out", "out.jsonl"))
    ok(brd_here("export", run, "--format", "trl", "--chat", "--out", "out"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    real, written = to.as_line, []

    def full(value: dict[str, Any]) -> str:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(value)
        return real(value)

    monkeypatch.setattr(to, "as_line", full)
    for target, *options in (("out.jsonl", "--format", "jsonl"), ("out", "--format", "trl", "--chat")):
        written.clear()
        failed(brd_here("export", run, *options, "--out", target, "--force"), "the disk is full")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.jsonl"]


def test_a_recipe_that_changed_since_the_reading_is_noticed(brd_here: Brd, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    run = read_into(tmp_path / "run", recipe)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("max_new_tokens: 72", "max_new_tokens: 60"))
    for format_, *options in (("jsonl",), ("trl",), ("parquet", "--note", "x")):
        done = brd_here("export", run, "--format", format_, "--out", "out", *options)
        failed(done, "readings that its recipe.yaml asks for are not there", "brd read")
    assert not (tmp_path / "out").exists()


def test_only_whole_folders_of_ours_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    to.check_target(tmp_path / "empty", folder=True, force=False, ours=["train.jsonl"])
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "train.jsonl").touch()
    with pytest.raises(BrdError, match="exists already"):
        to.check_target(tmp_path / "ours", folder=True, force=False, ours=["train.jsonl"])
    to.check_target(tmp_path / "ours", folder=True, force=True, ours=["train.jsonl"])
    with pytest.raises(BrdError, match="other files"):
        to.check_target(tmp_path / "ours", folder=True, force=True, ours=["test.jsonl"])


def test_the_commands_of_the_page(run: Path, brd_here: Brd, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    commands = [shlex.split(line, comments=True) for line in page.split("```sh\n")[1].split("```")[0].splitlines()]
    assert len(commands) == 5
    for command in commands:
        ok(brd_here(*command[1:]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat.jsonl", "known.parquet", "lessons", "readings.jsonl", "runs",
    ]  # fmt: skip
