"""Reading by shards on a real Ray cluster (of this machine), with Ray's own stages around a scripted engine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from brd import recipe as recipes
from brd.console import Console
from brd.errors import BrdError, TeacherUnreachable
from brd.pipeline import Pipeline
from brd.reading import shards
from brd.reading.known import Known
from brd.reading.pending import Intake
from brd.reading.reader import read, teacher_hash
from brd.reading.store import Store, every
from brd.recipe import Recipe
from brd.run import RunFolder
from brd.sections.teacher import Teacher as Settings
from brd.teachers import LazyTeacher, open_teacher, ray_data
from brd.teachers.teacher import Answer, Prompt

FAKE = Path(__file__).parents[1] / "fake_vllm"
SENTENCES = [f"Ship number {n} came into the harbour of Oslo." for n in range(40)]


def recipe_in(folder: Path, sentences: list[str] = SENTENCES, **teacher: Any) -> Recipe:
    """A recipe of sentences that are a source text each; shards of eight readings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("\n\n".join(sentences))
    tree = {
        "name": "small",
        "text": {"source": "corpus.txt", "held_out": 0.3},
        "teacher": {
            **{"kind": "vllm", "model": "org/model-7b", "batch_size": 4},
            "cluster": {"device": "cpu", "shard_rows": 8, "revision": "abc"},
            **teacher,
        },
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return recipes.load(str(folder / "small.yaml"))


def written(recipe: Recipe, run: Path) -> shards.Job:
    with Store(run / "readings") as store:
        job = shards.plan(recipe, run / "shards")
        shards.write(recipe, job, store)
    return job


def answer_all(job: shards.Job, **instead: Answer) -> list[Path]:
    """Output files without a cluster."""
    for source in job.missing():
        shard = shards._Shard(source)
        for row in shard.rows:
            shard.add(row["key"], instead.get(row["key"], Answer(" none", 3, 2, True)))
        shards._write(job, shard, job.output(source))
    return [job.output(source) for source in job.inputs()]


def taken(recipe: Recipe, job: shards.Job, run: Path) -> int:
    with Store(run / "readings") as store:
        outputs = [job.output(source) for source in job.inputs() if job.output(source).exists()]
        return shards.take(job, outputs, store, Intake(recipe, job.teacher, store))


# Without a cluster.


def test_questions_are_those_that_the_reader_asks(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, [*SENTENCES, SENTENCES[3]])
    job = written(recipe, tmp_path / "run")
    rows = [row for path in job.inputs() for row in pq.read_table(path).to_pylist()]
    assert [len(pq.read_table(path)) for path in job.inputs()] == [8] * 10
    assert [path.name for path in job.inputs()] == [f"part-{n:05d}.parquet" for n in range(10)]
    # One row a sentence and behavior, though one sentence stands there twice.
    assert Counter(row["text"] for row in rows) == dict.fromkeys(SENTENCES, 2)
    asked: list[str] = []

    class Teacher:
        context_length = 99
        identity = LazyTeacher(recipe.teacher).identity

        def answer(self, prefix: str, suffixes: Any, *, stop: Any, max_new_tokens: int) -> Iterator[tuple[int, Answer]]:
            asked.extend(prefix + suffix for suffix in suffixes)
            yield from ((n, Answer(" none", 1, 1, True)) for n in range(len(suffixes)))

    read(recipe, tmp_path / "other" / "readings", Teacher())  # type: ignore[arg-type]
    told = json.loads((job.folder / "job.json").read_text())
    prompts = [told["prompts"][row["prompt_hash"]]["prefix"] + row["suffix"] for row in rows]
    assert sorted(prompts) == sorted(asked)
    theirs = {reading.key: reading for part in every(tmp_path / "other" / "readings") for reading in part}
    assert {row["key"] for row in rows} == set(theirs)
    for row in rows:
        found = theirs[row["key"]]
        names = ("document", "paragraph", "sentence", "start", "end", "text", "behavior", "prompt_hash")
        assert [row[name] for name in names] == [getattr(found, name) for name in names]


def test_answers_come_into_the_store_as_if_the_reader_had_asked(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    job = written(recipe, tmp_path / "run")
    outputs = answer_all(job)
    assert [path.name for path in outputs] == [path.name for path in job.inputs()]
    assert taken(recipe, job, tmp_path / "run") == 80
    assert taken(recipe, job, tmp_path / "run") == 0
    # The output files are what `reading.known` takes, and give the same readings by that way.
    known = recipes.changed(recipe, {"reading.known": [str(path) for path in outputs]})
    assert len(Known(outputs).answers(key for path in outputs for key in pq.read_table(path)["key"].to_pylist())) == 80
    read(known, tmp_path / "other" / "readings", LazyTeacher(recipe.teacher))
    here, there = (
        {reading.key: reading for part in every(tmp_path / name / "readings") for reading in part}
        for name in ("run", "other")
    )
    assert here == there
    assert Counter(r.verdict for r in here.values()) == {"verified": 40, "malformed": 40}
    with Store(tmp_path / "run" / "readings") as store:
        assert shards.write(recipe, job, store) == 0


def test_a_corpus_that_grows_gets_further_shards_and_other_prompts_another_job(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, SENTENCES[:30])
    job = written(recipe, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in job.inputs()}
    answer_all(job)
    taken(recipe, job, tmp_path / "run")
    again = written(recipe_in(tmp_path), tmp_path / "run")
    assert again.folder == job.folder
    assert {path.name: path.read_bytes() for path in again.inputs()[: len(before)]} == before
    assert sum(len(pq.read_table(path)) for path in again.missing()) == 20
    for other in ({"model": "org/other"}, {"max_new_tokens": 8}, {"dtype": "float16"}):
        assert shards.plan(recipe_in(tmp_path, **other), tmp_path / "run" / "shards").folder != job.folder


def test_an_interrupted_writing_goes_on(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    whole = written(recipe, tmp_path / "whole")
    job = written(recipe, tmp_path / "run")
    for path in job.inputs()[4:]:
        path.unlink()
    (job.folder / "in" / "part-00004.parquet.tmp").write_bytes(b"PAR1")
    job = written(recipe, tmp_path / "run")
    assert [path.read_bytes() for path in job.inputs()] == [path.read_bytes() for path in whole.inputs()]


def damaged(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop(), "no answer to 1 of 8 keys"),
        (lambda rows: rows.append(rows[0]), "two answers to key"),
        (lambda rows: rows[0].update(key="f" * 32), "an answer to key 'ffff"),
        (lambda rows: rows[0].update(teacher="another"), "answers of another teacher"),
    ],
)
def test_an_output_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], words: str
) -> None:
    recipe = recipe_in(tmp_path)
    job = written(recipe, tmp_path / "run")
    bad = answer_all(job)[2]
    damaged(bad, change)
    with pytest.raises(BrdError, match=words) as caught:
        taken(recipe, job, tmp_path / "run")
    assert str(bad) in str(caught.value)
    # What came before is stored; with the file away, its shard is the one that is missing.
    bad.unlink()
    assert [path.name for path in job.missing()] == [bad.name]
    assert taken(recipe, job, tmp_path / "run") == 80 - 16 - 8


def test_a_torn_output_file_and_one_of_something_else_are_told(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    job = written(recipe, tmp_path / "run")
    first, *_ = answer_all(job)
    first.write_bytes(first.read_bytes()[:-20])
    with pytest.raises(BrdError, match=r"part-00000\.parquet: damaged"):
        taken(recipe, job, tmp_path / "run")
    pq.write_table(pa.table({"a": [1]}), first)
    with pytest.raises(BrdError, match="no answers in this file"):
        taken(recipe, job, tmp_path / "run")
    first.rename(first.with_name("part-99999.parquet"))
    outputs = sorted((job.folder / "out").iterdir())
    with Store(tmp_path / "run" / "readings") as store:
        intake = Intake(recipe, job.teacher, store)
        with pytest.raises(BrdError, match="no shard of this job"):
            shards.take(job, outputs, store, intake)


def test_answers_of_a_shard_that_were_not_asked_are_refused(tmp_path: Path) -> None:
    job = written(recipe_in(tmp_path), tmp_path / "run")
    shard = shards._Shard(job.inputs()[0])
    key = shard.rows[0]["key"]
    shard.add(key, Answer("", 0, 0, True))
    with pytest.raises(BrdError, match="answered twice"):
        shard.add(key, Answer("", 0, 0, True))
    with pytest.raises(BrdError, match="not in it"):
        shard.add("x", Answer("", 0, 0, True))


def came_from_ray(monkeypatch: pytest.MonkeyPatch, rows: Callable[[list[ray_data.Row]], Any]) -> None:
    """Instead of a cluster: answers to all questions, changed by a test."""

    def read_files(_: Any, __: Any, files: list[Path]) -> Iterator[ray_data.Row]:
        asked = [row for path in files for row in pq.read_table(path).to_pylist()]
        found = [ray_data.Row(row["key"], row["shard"], Answer(" none", 3, 2, True), "") for row in asked]
        yield from rows(found) or found

    monkeypatch.setattr(ray_data, "read_files", read_files)


def test_what_ray_gives_back_has_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = written(recipe_in(tmp_path), tmp_path / "run")
    came_from_ray(monkeypatch, lambda rows: [replace(row, error="too long") for row in rows])
    with pytest.raises(BrdError, match=r"it refuses every question \(too long\)"):
        list(shards.read(job))
    came_from_ray(monkeypatch, lambda rows: rows.insert(0, replace(rows[0], shard="part-00077")))
    with pytest.raises(BrdError, match="part-00077"):
        list(shards.read(job))
    assert len(job.missing()) == 10
    # One is lost: the other shards are whole, and the next call asks for that one.
    came_from_ray(monkeypatch, lambda rows: [row for n, row in enumerate(reversed(rows)) if n != 20])
    with pytest.raises(TeacherUnreachable, match="too few answers to 1 shards"):
        list(shards.read(job))
    came_from_ray(monkeypatch, lambda rows: None if len(rows) == 8 else rows.clear())
    [last] = shards.read(job)
    table = pq.read_table(last)
    assert table["key"].to_pylist() == pq.read_table(job.folder / "in" / last.name)["key"].to_pylist()
    assert job.missing() == []
    last.unlink()
    with shards._locked(job.folder), pytest.raises(BrdError, match="another process is reading"):
        next(shards.read(job))


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        ("VLLMValidationError: This model's maximum context length is 64 tokens.", False),
        ("ValueError: the prompt is empty", False),
        ("EngineGenerateError: ", True),
        ("RuntimeError: out of memory\nValueError: not at its beginning", True),
    ],
)
def test_a_refusal_is_the_sentences_and_all_else_the_engines(error: str, failed: bool) -> None:
    row = ray_data._row({"key": "k", "shard": "s", "__inference_error__": error})
    assert (row.answer, row.failed) == (Answer("", 0, 0, False), failed)
    assert row.error


def test_a_shard_at_which_an_engine_failed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_in(tmp_path)
    job = written(recipe, tmp_path / "run")

    def third_fails(rows: list[ray_data.Row]) -> list[ray_data.Row]:
        bad = [n for n, row in enumerate(rows) if row.shard == "part-00002"][3:5]
        return [
            replace(row, error="EngineGenerateError", failed=True) if n in bad else row for n, row in enumerate(rows)
        ]

    came_from_ray(monkeypatch, third_fails)
    with pytest.raises(TeacherUnreachable, match=r"an engine failed at 1 shards .*part-00002: EngineGenerateError"):
        list(shards.read(job))
    assert [path.stem for path in job.missing()] == ["part-00002"]
    came_from_ray(monkeypatch, lambda rows: None)
    assert [path.stem for path in shards.read(job)] == ["part-00002"]
    assert taken(recipe, job, tmp_path / "run") == 80
    assert all(reading.finished for part in every(tmp_path / "run" / "readings") for reading in part)


def test_the_floor_stops_it_and_the_answers_stay(tmp_path: Path) -> None:
    recipe = recipes.changed(recipe_in(tmp_path), {"reading.floor": 0.5, "reading.floor_window": 10})
    job = written(recipe, tmp_path / "run")
    answer_all(job)
    with pytest.raises(BrdError, match=r"reading\.floor: qra"):
        taken(recipe, job, tmp_path / "run")
    assert sum(len(part) for part in every(tmp_path / "run" / "readings")) >= 20


def test_without_ray_one_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_in(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BrdError, match=r"10 shards are to be read\. Ray is not installed here: pip install 'brd\[ray"):
        shards.read_recipe(recipe, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BrdError, match="Ray is not installed here"):
        list(open_teacher(recipe.teacher).answer("a", ["b"], stop=("\n",), max_new_tokens=3))
    # Where all has been answered elsewhere, Ray is not needed.
    answer_all(shards.plan(recipe, tmp_path / "run" / "shards"))
    assert shards.read_recipe(recipe, tmp_path / "run")["ner_asked"] == 40


def test_a_folder_that_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match="brd shards write"):
        shards.open_job(tmp_path)
    (tmp_path / "job.json").write_text('{"teacher": {"kind": "vllm", "model": "a"}}')
    with pytest.raises(BrdError, match="brd shards write"):
        shards.open_job(tmp_path)


def test_identity_is_the_name_and_the_engine_and_not_the_place() -> None:
    def told(cluster: dict[str, Any] | None = None, **keys: Any) -> tuple[str, str]:
        made = Settings.model_validate({"kind": "vllm", "model": "org/model", **keys, "cluster": cluster or {}})
        return teacher_hash(ray_data.load(made)), json.dumps(made.answering(), sort_keys=True)

    same: list[dict[str, Any]] = [{"weights": "/models/m"}, {"engines": 8}, {"tensor_parallel": 4}, {"device": "cpu"}]
    same += [{"shard_rows": 9}, {"engine": {"max_num_seqs": 512, "gpu_memory_utilization": 0.8}}]
    assert {told(cluster) for cluster in same} == {told()} == {told(batch_size=3)}
    others = [told({"revision": "abc"}), told({"engine": {"quantization": "awq"}}), told(dtype="float16")]
    others += [told(model="org/other"), told(chat_template=True)]
    for kind in zip(told(), *others, strict=True):
        assert len(set(kind)) == 6
    for cluster in ({"engine": {"dtype": "half"}}, {"engine": {"a": {1}}}):
        with pytest.raises(ValueError, match=r"teacher\.dtype|JSON"):
            told(cluster)
    with pytest.raises(ValueError, match="no int8"):
        told(dtype="int8")


def test_a_template_that_begins_with_bos_does_not_get_another_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    for adds in (True, False):
        words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        if adds:
            words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
        tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
        tokenizer.save_pretrained(tmp_path / str(adds))
        settings = Settings.model_validate(
            {"kind": "vllm", "model": "m", "chat_template": True, "cluster": {"weights": str(tmp_path / str(adds))}}
        )
        before, _ = ray_data._stages(settings, {"a": Prompt("Do.\n\nA.\nE: none\n\n", ("\n",), 5)})
        prompt = before({"prompt_hash": "a", "suffix": "B.\nE:"})["prompt"]
        assert prompt == ("" if adds else "<s>") + "[Do.][A.][E: none][B.]E:"


def test_what_travels_to_the_workers_needs_nothing_of_this_package(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray import cloudpickle

    settings = Settings.model_validate(
        {"kind": "vllm", "model": "m", "chat_template": True, "cluster": {"weights": str(tiny_model)}}
    )
    stages = ray_data._stages(settings, {"ner": Prompt("Do.\n\nA.\nE: none\n\n", ("\n",), 5)})
    packed = cloudpickle.dumps(stages)
    for name in [name for name in sys.modules if name.partition(".")[0] == "brd"]:
        monkeypatch.setitem(sys.modules, name, None)
    before, after = cloudpickle.loads(packed)
    row = {"key": "k", "shard": "s", "prompt_hash": "ner", "suffix": "B.\nE:"}
    assert before(row) == stages[0](row)
    row |= {"generated_text": " none\nX", "num_generated_tokens": 5, "num_input_tokens": 9}
    told = {"raw": " none", "finished": True, "prompt_tokens": 9, "new_tokens": 5}
    assert after(row) == {"key": "k", "shard": "s", **told}


# On a cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray cluster whose workers have the scripted engine; the folder by which it is told what to do."""
    ray = pytest.importorskip("ray")
    control = tmp_path_factory.mktemp("control")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTROL", str(control))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        context = ray.init(
            **{
                "address": "local",
                "num_cpus": 2,
                "include_dashboard": False,
                "object_store_memory": 100 * 2**20,
                "log_to_driver": False,
            }
        )
        patch.setenv("RAY_ADDRESS", context.address_info["address"])
        yield control
        ray.shutdown()


@pytest.fixture
def control(cluster: Path) -> Path:
    for path in cluster.iterdir():
        path.unlink()
    return cluster


def asked(control: Path) -> list[list[Any]]:
    # Of the last line there may be only a part yet.
    return [json.loads(line) for line in (control / "asked").read_text().split("\n")[:-1]]


def test_the_read_step_on_a_cluster(
    control: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    special = ["We refuse to be short.", "An endless tale is told.", "He was stopped at the end."]
    recipe = recipe_in(tmp_path, [*SENTENCES[:20], *special])
    run = RunFolder(tmp_path / "run", recipe)
    Pipeline(recipe, run, Console()).read()
    (folder,) = (run.path / "shards").iterdir()
    job = shards.open_job(folder)
    assert job.missing() == []
    readings = {(r.text, r.behavior): r for part in every(run.path / "readings") for r in part}
    assert len(readings) == 46
    for (text, behavior), reading in readings.items():
        if text in SENTENCES:
            wanted = " none" if behavior == "ner" else f" What is said?\nAnswer: {text}"
            assert (reading.raw, reading.finished, reading.prompt_tokens, reading.new_tokens) == (wanted, True, 3, 5)
    refused, endless, stopped = (readings[text, "ner"] for text in special)
    assert (refused.raw, refused.finished, refused.new_tokens, refused.verdict) == ("", False, 0, "malformed")
    assert (endless.finished, stopped.finished) == (False, True)
    assert stopped.raw == " none"
    # Prompts as the reader makes them, greedy, each once.
    lines = asked(control)
    assert len({text for text, _ in lines}) == len(lines) == 46
    told = json.loads((folder / "job.json").read_text())["prompts"].values()
    for text, sampling in lines:
        (prompt,) = (prompt for prompt in told if text.startswith(prompt["prefix"]))
        del sampling["structured_outputs"]
        assert sampling == {
            **{"temperature": 0.0, "max_tokens": prompt["max_new_tokens"], "stop": prompt["stop"]},
            "include_stop_str_in_output": True,
        }
    engine = json.loads((control / "engine").read_text())
    assert (engine["model"], engine["dtype"], engine["revision"]) == ("org/model-7b", "auto", "abc")
    assert "vLLM refused 2 sentences, which count as malformed (ValueError: the prompt is too long)" in (
        capsys.readouterr().err
    )
    counts = run.manifest("read")["result"]["counts"]  # type: ignore[index]
    assert (counts["ner_asked"], counts["ner_known_before"], counts["prompt_tokens"]) == (23, 0, 3 * 44)


def test_killed_in_the_middle_it_goes_on_with_the_shards_that_are_missing(
    control: Path, tmp_path: Path, brd_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    recipe_in(tmp_path)
    done = brd_here("shards", "write", "small.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.split(": ")[0]
    assert "80 new questions; 10 of 10 shards are to be read" in done.stdout
    job = shards.open_job(folder)
    prompts = {
        job.prompts[row["prompt_hash"]].prefix + row["suffix"]: source.name
        for source in job.inputs()
        for row in pq.read_table(source).to_pylist()
    }
    sizes = Counter(prompts.values())

    def came_in() -> Counter[str]:
        return Counter(text for text, _ in asked(control)) if (control / "asked").exists() else Counter()

    # The engine does not come back from two sentences: with their shards it has as many as it may.
    (control / "wait").write_text("number 19 \nnumber 31 ")
    stuck = {name for text, name in prompts.items() if "number 19 " in text or "number 31 " in text}
    assert len(stuck) == ray_data.AHEAD
    command = [sys.executable, "-m", "brd", "shards", "read", str(folder)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        begun = Counter(prompts[text] for text in came_in())
        ended = {name for name, count in begun.items() if count == sizes[name]} - stuck
        if stuck <= begun.keys() and ended == {path.name for path in (folder / "out").glob("*.parquet")}:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    whole = {path.name: path.read_bytes() for path in (folder / "out").glob("*.parquet")}
    assert len(whole) < 9
    before = came_in()
    assert max(before.values()) == 1
    (folder / "out" / "part-00009.parquet.tmp").write_bytes(b"PAR1 half a shard")
    (control / "wait").unlink()

    outputs = list(shards.read(job))
    assert job.missing() == []
    assert len(outputs) == 10 - len(whole)
    assert {name: (folder / "out" / name).read_bytes() for name in whole} == whole
    assert not list((folder / "out").glob("*.tmp"))
    # Of a whole shard nothing is asked again, and of the others what the engine had.
    after = came_in()
    assert after.keys() == prompts.keys()
    assert {prompts[text] for text, times in after.items() if times > 1} <= stuck
    assert max(after.values()) <= 2
    # All is answered: there is nothing to start engines for.
    (control / "engine").unlink()
    assert list(shards.read(job)) == []
    assert not (control / "engine").exists()
    done = brd_here("read", "small.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "ner" in done.stderr
    assert sum(len(part) for part in every(tmp_path / "run" / "readings")) == 80


def test_engines_that_cannot_be_started(control: Path, tmp_path: Path) -> None:
    job = written(recipe_in(tmp_path), tmp_path / "run")
    (control / "broken").touch()
    with pytest.raises(TeacherUnreachable, match="no such weights"):
        list(shards.read(job))
    assert len(job.missing()) == 10


def test_a_few_questions_without_shards_in_a_conversation(control: Path, tmp_path: Path, tiny_model: Path) -> None:
    """The Teacher protocol, as `brd preview` uses it; the model's own template puts the exemplars in turns."""
    from transformers import AutoTokenizer

    settings = recipe_in(tmp_path, chat_template=True, cluster={"device": "cpu", "weights": str(tiny_model)}).teacher
    prefix = "Do this.\n\nSentence: A.\nEntities: none\n\n"
    teacher = open_teacher(settings)
    suffixes = [f"Sentence: {s}\nEntities:" for s in SENTENCES[:5]]
    found = dict(teacher.answer(prefix, suffixes, stop=("\n",), max_new_tokens=9))
    assert found == {n: Answer(" none", 3, 5, True) for n in range(5)}
    assert list(teacher.answer(prefix, [], stop=("\n",), max_new_tokens=9)) == []
    turns = [("system", "Do this."), ("user", "Sentence: A."), ("assistant", "Entities: none")]
    messages = [{"role": role, "content": content} for role, content in turns]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = {
        tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": f"Sentence: {s}"}], tokenize=False, add_generation_prompt=True
        )
        + "Entities:"
        for s in SENTENCES[:5]
    }
    assert {text for text, _ in asked(control)} == texts
    teacher.close()
