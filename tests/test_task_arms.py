"""The arms that are kinds of data: continuations, the teacher's answers to task inputs, labels; through `brd run`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import yaml

from brd import recipe
from brd.composing.continuations import beginning, joined
from brd.composing.packing import TokenRows
from brd.composing.task_answers import OPTIONS, option
from brd.errors import BrdError
from brd.evaluation.tasks import load_task
from brd.evaluation.tested import ScoredItems, with_prompts
from brd.fingerprints import Fingerprints
from brd.reading.answers import Answers, Asked, completing
from brd.reading.store import shards
from brd.recipe_tasks import task_inputs
from brd.teachers.teacher import Prompt
from openai_server import MODEL, Reply, Server, completion
from openai_server import Asked as Request

SEAS = ("Aral", "Baltic", "Caspian", "Dead", "East", "Filipino", "Great", "High", "Inner", "Java")


def record(number: int, **more: Any) -> dict[str, Any]:
    said = f"The {SEAS[number % 10]} sea was {'calm' if number % 2 else 'rough'} on day {number} of the journey."
    return {"report": said, "calm": number % 2 == 1, "idx": number, **more}


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


@pytest.fixture
def seas(tmp_path: Path) -> dict[str, Any]:
    """A task with a test set of six items, and eight training records of which two are tested items."""
    jsonl(tmp_path / "test.jsonl", [record(n) for n in range(6)])
    # The same question in another file: another number, another label, other capitals.
    again = [record(n) | {"idx": 90 + n, "calm": True, "report": record(n)["report"].upper()} for n in (2, 3)]
    jsonl(tmp_path / "train.jsonl", [*again, *(record(n) for n in range(10, 16))])
    task = {
        "name": "seas",
        "version": 1,
        "about": "Was it calm?",
        "source": {"file": "test.jsonl"},
        "templates": {
            "question": {"prompt": "{{ report }}\nQuestion: Was it calm?\nAnswer:", "candidates": [" no", " yes"]}
        },
        "label": "calm",
        "labels": {"false": 0, "true": 1},
        "citation": "none",
        "licence": "CC0",
    }
    (tmp_path / "seas.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return {
        "composing": {"row_tokens": 32},
        "training": {"epochs": 0.6, "learning_rate": 1e-2},
        "distillation": {"prompt_tokens": 8, "new_tokens": 6},
        "reading": {"sentences": 4, "held_out_sentences": 1},
        "evaluation": {"tasks": ["seas.yaml"], "reading_arms": []},
        "task_data": {"inputs": {"seas": "train.jsonl"}},
    }


def manifest(out: Path, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "steps" / f"{step}.json").read_text())
    return found["result"]


def text_of(out: Path, arm: str, tokenizer: Any) -> str:
    rows = TokenRows(out / "composed" / arm)
    return str(tokenizer.decode([token for n in range(len(rows)) for token in rows[n].tolist()]))


@pytest.fixture
def server() -> Iterator[Server]:
    """A teacher that reads badly, goes on with texts, and finds every sea calm."""

    def plan(asked: Request) -> Reply:
        prompt = asked.body.get("prompt", "")
        if prompt.startswith(OPTIONS.prefix):
            return completion(asked, " 2")
        if prompt.endswith(("Entities:", "Question:")):
            return completion(asked, " none" if prompt.endswith("Entities:") else " Was it day? Yes")
        return completion(asked, " and so on it went") if asked.path.endswith("completions") else Reply(status=404)

    with Server(plan) as running:
        yield running


def by_server(server: Server) -> dict[str, Any]:
    return {"kind": "openai", "model": MODEL, "server": {"base_url": server.url, "retries": 0, "context_length": 4096}}


def test_the_arms_by_a_teacher_that_gives_text(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any], server: Server, tokenizer: Any
) -> None:
    arms = ["base", "seq_kd", "task_distillation", "relaxed", "brd+supervised"]
    path = recipe_file(**seas, teacher=by_server(server), arms=arms)
    done = brd_here("run", path, "--out", "out")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    trained = [manifest(out, f"train.{arm}") for arm in arms[1:]]
    assert len({(found["steps"], found["trained_tokens"]) for found in trained}) == 1
    assert all(found["loss"] == "chunked" for found in trained)

    told = manifest(out, "compose.task_distillation")
    assert told["task_data"] == {"records": 8, "tested": 2, "unanswered": 0}
    assert told["passes"] > 1
    assert "8 task inputs, 2 are tested; taken: 6 inputs" in done.stderr
    assert "went through its task inputs" in "".join(json.loads((out / "summary.json").read_text())["notes"])

    page = (out / "report.html").read_text()
    assert "Not unseen: task_distillation, relaxed and brd+supervised learnt from other inputs of seas" in page

    # The teacher is taken at its word, right or wrong; labels are the records' own; what is tested is nowhere.
    answered, labelled = (text_of(out, arm, tokenizer) for arm in ("task_distillation", "supervised"))
    assert "day 11 of the journey.\nQuestion: Was it calm?\nAnswer: yes<" in answered
    assert "day 10 of the journey.\nQuestion: Was it calm?\nAnswer: yes<" in answered
    assert "Answer: no" not in answered
    assert "day 10 of the journey.\nQuestion: Was it calm?\nAnswer: no<" in labelled
    for arm in ("task_distillation", "supervised", "relaxed"):
        assert not any(f"day {n} " in text_of(out, arm, tokenizer).lower() for n in range(6))
    assert " and so on it went<" in text_of(out, "seq_kd", tokenizer)
    taken = manifest(out, "compose.relaxed")["taken"]
    assert set(taken) == {"lessons", "answers", "inputs"}
    prompts = [asked.body["prompt"] for asked in server.questions()]
    # Both behaviors read the sentence of an input that is learnt.
    assert sum("Sentence: The Caspian sea was rough on day 12 " in prompt for prompt in prompts) == 2
    assert not any(f"day {n} " in prompt.lower() for prompt in prompts for n in range(6))

    # Nothing is paid for twice: not by another arm, not by another seed, not after the token files are gone.
    times = Counter(asked.body["prompt"] for asked in server.questions())
    assert max(times.values()) == 1
    for arm in ("seq_kd", "task_distillation", "relaxed"):
        (out / "steps" / f"compose.{arm}.json").unlink()
    before = len(server.questions())
    arms += ["task_distillation@1", "seq_kd@1"]
    again = brd_here("compose", path, "--out", "out", "--set", f"arms={arms}")
    assert again.returncode == 0, again.stderr
    assert len(server.questions()) == before
    orders = [text_of(out, arm, tokenizer) for arm in ("task_distillation", "task_distillation@1")]
    assert orders[0] == answered != orders[1]


def test_a_teacher_with_probabilities_is_asked_for_these(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any], tokenizer: Any
) -> None:
    path = recipe_file(**seas, arms=["base", "task_distillation", "seq_kd"])
    assert brd_here("read", path, "--out", "out").returncode == 0
    done = brd_here("compose", path, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "asked 6 times for probabilities" in done.stderr
    told = manifest(tmp_path / "out", "compose.task_distillation")
    assert (told["answers"]["asked"], told["taken"]) == (6, {"inputs": 6})
    assert text_of(tmp_path / "out", "task_distillation", tokenizer).count("Question: Was it calm?\nAnswer: ") >= 6


def test_inputs_are_left_out_by_what_they_ask(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any]
) -> None:
    path = recipe_file(**seas, arms=["supervised"])
    counts: Counter[str] = Counter()
    found = task_inputs(recipe.load(str(path)), True, counts)
    assert [one.place for one in found] == [f"seas/{n}" for n in range(2, 8)]
    assert [one.right for one in found] == [0, 1] * 3
    assert "task inputs: 6 prompts; 2 tested inputs left out" in brd_here("validate", path).stdout
    fewer = task_inputs(recipe.load(str(path), ["task_data.limit=5"]), True, Counter())
    assert len(fewer) == 5
    assert set(fewer) < set(found)
    # What is read of an input is not what stands in a tested one too.
    jsonl(tmp_path / "train.jsonl", [record(10, note=record(1)["report"])])
    (one,) = task_inputs(recipe.load(str(path)), False, Counter())
    assert one.texts == (record(10)["report"],)
    # Where one half is tested, the test set's own other half can be learnt from.
    own = [f"task_data.inputs={{seas: {tmp_path / 'test.jsonl'}}}"]
    with pytest.raises(
        BrdError, match=r"^task_data\.inputs\.seas: all its 6 records are tested; name a training split"
    ):
        task_inputs(recipe.load(str(path), own), False, counts)
    halves = [
        {one.place for one in task_inputs(recipe.load(str(path), [*own, f"evaluation.half={half}"]), False, Counter())}
        for half in ("a", "b")
    ]
    assert halves[0] | halves[1] == {f"seas/{n}" for n in range(6)}
    assert not halves[0] & halves[1]


def test_an_item_of_another_task_is_tested_too(tmp_path: Path, seas: dict[str, Any]) -> None:
    task = load_task(tmp_path / "seas.yaml")
    tested = ScoredItems([task.model_copy(update={"name": "other"})], None, [])
    known = [tested.has(task, *found) for found in with_prompts(task, [record(1) | {"calm": 0}, record(10)])]
    assert known == [True, False]
    assert tested.has_text(record(1)["report"].lower().replace(".", " !"))
    # A field of its own hides nothing where the prompt is the same; without the prompt it does.
    ((more, item),) = with_prompts(task, [record(1) | {"from": "a training split"}])
    assert ScoredItems([task], None, ["seas"]).has(task, more, item)
    assert not tested.has(task, more, item)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "the arm task_distillation learns from task inputs, and there are none; name a training split"),
        ({"seas": "nowhere.jsonl"}, "task_data.inputs.seas: task seas: no such file: "),
        ({"sees": "train.jsonl"}, "task_data.inputs: unknown task 'sees'; did you mean 'seas'"),
        ({"seas": "train.txt"}, "should end in .jsonl, .csv, .parquet"),
        ({"seas": "other.jsonl"}, "task_data.inputs.seas: task seas, template question, item 0: "),
        ({"seas": "empty.jsonl"}, "task_data.inputs.seas: it holds no records"),
    ],
)
def test_what_is_missing_is_one_line_before_anything_is_read(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any], inputs: dict[str, str], message: str
) -> None:
    jsonl(tmp_path / "other.jsonl", [{"words": "no report"}])
    jsonl(tmp_path / "empty.jsonl", [])
    refused = brd_here("run", recipe_file(**seas | {"task_data": {"inputs": inputs}}, arms=["task_distillation"]))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not [*tmp_path.glob("runs/*/readings")]


def test_labels_are_missed_before_anything_is_read(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any]
) -> None:
    jsonl(tmp_path / "train.jsonl", [{"report": record(n)["report"]} for n in range(10, 14)])
    path = recipe_file(**seas, arms=["supervised"])
    refused = brd_here("run", path, "--out", "out")
    assert refused.returncode == 2
    assert "task_data.inputs.seas: task seas, template question, item 0: no label in field 'calm'" in refused.stderr
    assert len(task_inputs(recipe.load(str(path)), False, Counter())) == 4


class Counting:
    """Says a number for each prompt, and dies before the answer to one."""

    context_length = 100

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[str] = []
        self._dies_at = dies_at

    def identity(self) -> dict[str, str]:
        return {"model": "counting"}

    def count_tokens(self, text: str) -> int:
        return 1

    def answer(self, prefix: str, suffixes: Any, *, stop: Any, max_new_tokens: int) -> Iterator[Any]:
        from brd.teachers.teacher import Answer

        # In an order of its own.
        for index in reversed(range(len(suffixes))):
            if len(self.asked) == self._dies_at:
                raise KeyboardInterrupt
            self.asked.append(suffixes[index])
            yield index, Answer(f"{suffixes[index]}!", 1, 1, True)

    def close(self) -> None:
        pass


def test_a_torn_journal_costs_one_answer(tmp_path: Path) -> None:
    prompt, asked = Prompt("", ("\n",), 4), [Asked(f"t/{n}", f"p{n % 5}") for n in range(8)]
    first, folder = Counting(dies_at=3), tmp_path / "answers"
    with pytest.raises(KeyboardInterrupt), Answers(folder, first, shard_rows=2) as answers:
        answers.of(completing("kind", prompt), asked)
    journal = folder / "journal.jsonl"
    with Answers(folder, Counting(), shard_rows=2) as answers:
        answers.of(completing("kind", prompt), [Asked("t/9", "p9")])
        torn = journal.read_bytes()
    # What a process leaves that was killed while it wrote: the end of its last line is missing.
    for shard in sorted(folder.glob("readings-*.parquet"))[1:]:
        shard.unlink()
    (folder / "sealed.jsonl").unlink()
    journal.write_bytes(torn[:-20])
    second = Counting()
    with Answers(folder, second, shard_rows=2) as answers:
        found = answers.of(completing("kind", prompt), [*asked[3:], *asked[:3]])
        answers.of(completing("other kind", prompt), asked[:1])
    assert found == [f"p{n % 5}!" for n in (3, 4, 5, 6, 7, 0, 1, 2)]
    assert len(set(second.asked[:-1])) == len(second.asked[:-1]) == 3
    assert not set(first.asked[:2]) & set(second.asked[:-1])


def test_what_a_teacher_writes_names_a_candidate_or_none() -> None:
    candidates = (" no", " not  at all", " yes")
    said = {
        " 2": 1,
        "(3) yes": 2,
        "1.": 0,
        "Not at all, I fear": 1,
        "No.": 0,
        "": None,
        "4": None,
        "12": None,
        "maybe": None,
    }
    assert {text: option(text, candidates) for text in said} == said


def test_beginnings_end_at_a_word(tokenizer: Any) -> None:
    text = "The miller's daughter walked to the market with a basket of plums and came back with a goat."
    assert beginning(text, 4, tokenizer) in ("The miller's", "The miller's daughter")
    assert text.startswith(beginning(text, 500, tokenizer))
    assert 30 < len(beginning(text, 500, tokenizer)) <= len(text) / 2
    assert beginning("Antidisestablishmentarianism", 4, tokenizer) == ""
    assert joined("She went", " home. ") == joined("She went", "home.") == "She went home."
    assert joined("She went", "She went home.") == "She went home."


def test_what_changes_a_kind_of_data_and_what_does_not(recipe_file: Any, seas: dict[str, Any], tmp_path: Path) -> None:
    loaded = recipe.load(str(recipe_file(**seas, arms=["base", "brd", "seq_kd", "relaxed", "supervised"])))
    arms = ["brd", "further", "kd", "seq_kd", "relaxed", "supervised", "task_distillation"]
    before = {arm: Fingerprints(loaded).compose(arm) for arm in arms}

    def changes(**keys: Any) -> set[str]:
        other = Fingerprints(recipe.changed(loaded, {key.replace("__", "."): value for key, value in keys.items()}))
        return {arm for arm in arms if other.compose(arm) != before[arm]}

    tasks = {"relaxed", "supervised", "task_distillation"}
    assert changes(task_data__limit=3) == changes(evaluation__half="a") == tasks
    assert changes(task_data__mix={"answers": 2.0}) == {"relaxed"}
    assert changes(distillation__new_tokens=5) == {"seq_kd"}
    jsonl(tmp_path / "train.jsonl", [record(n) for n in range(10, 15)])
    assert changes() == tasks


def test_inputs_are_read_in_the_dtype_of_the_runs_readings(
    recipe_file: Any,
    brd_here: Any,
    tmp_path: Path,
    seas: dict[str, Any],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As on a machine where `brd check-int8` allowed it, which a model this small would not pass.
    monkeypatch.setattr("brd.recipe_teacher.now", lambda _: "int8")
    teacher = {"model": str(tiny_model), "max_new_tokens": 8, "dtype": "auto"}
    path = recipe_file(**seas, teacher=teacher, arms=["base", "relaxed"])
    done = brd_here("run", path, "--out", "out", "--until", "compose")
    assert done.returncode == 0, done.stderr
    folders = ("readings", "task_readings")
    found = [{one for file in shards(tmp_path / "out" / name) for one in teachers(file)} for name in folders]
    assert found[0] == found[1]
    assert len(found[0]) == 1


def teachers(shard: Path) -> list[str]:
    return [str(one) for one in parquet.read_table(shard, columns=["teacher"])["teacher"].to_pylist()]
