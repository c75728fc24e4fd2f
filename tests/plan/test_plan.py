"""`brd plan` as a user meets it, against what the run then asks, counts and writes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brd import teachers
from brd.pipeline import Pipeline
from brd.recipe import load
from brd.run import RunFolder
from brd.sections.teacher import Prices, Teacher
from brd.teachers.teacher import Answer
from openai_server import MODEL, Asked, Reply, Server, completion, default

Brd = Callable[..., subprocess.CompletedProcess[str]]
ANSWERS = {"Entities:": " none", "Question:": " What is it about?\nAnswer: the harbour"}
PRICES = {"currency": "EUR", "input": 2.0, "cached_input": 0.5, "output": 10.0, "batch": 0.5}


def answering(asked: Asked) -> Reply:
    """100 tokens of prompt, 80 of them in the cache, 3 new ones."""
    if not asked.path.endswith("/completions"):
        return default(asked)
    return completion(asked, ANSWERS[asked.body["prompt"].rpartition("\n")[2]])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(answering) as running:
        yield running


def at(server: Server, **more: Any) -> dict[str, Any]:
    """The section ``teacher`` of a recipe."""
    here = {"base_url": server.url, "concurrency": 4, "retries": 0, "timeout": 20, "context_length": 2048}
    return {"kind": "openai", "model": MODEL, "server": here, **more}


def planned(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_was_asked_for_the_plan_is_not_asked_again(
    brd_here: Brd, recipe_file: Any, tmp_path: Path, server: Server
) -> None:
    path = recipe_file(teacher=at(server, prices=PRICES), arms=["base"], reading={"sentences": 60})
    found = planned(brd_here("plan", path, "--json"))
    rows, asked = found["reading"]["behaviors"], len(server.questions())
    assert found["reading"]["asked_now"] == asked == rows["ner"]["asked"] + rows["qra"]["asked"]
    # Two, then a third or so of what there is, in two calls.
    assert 20 <= rows["ner"]["asked"] <= 42
    assert found["text"]["exact"]
    sentences = sum(found["text"]["sentences"].values())
    assert found["text"]["distinct"] == rows["ner"]["asked"] + rows["ner"]["to_ask"] <= sentences
    assert brd_here("read", path).returncode == 0
    run = len(server.questions()) - asked
    assert run == rows["ner"]["to_ask"] + rows["qra"]["to_ask"]
    assert all(count <= 2 for sentence, count in server.times.items() if sentence)
    # What the plan said of tokens and money is what the run's requests took.
    tokens = {key: sum(row["tokens"][key] for row in rows.values()) for key in ("input", "cached", "output")}
    assert tokens == {"input": 100 * run, "cached": 80 * run, "output": 3 * run}
    prices = found["reading"]["prices"]
    assert prices["total"] == pytest.approx((20 * run * 2 + 80 * run * 0.5 + 3 * run * 10) / 1e6)
    assert prices["batch"]["total"] == pytest.approx(prices["total"] / 2)
    assert prices["sample"] == pytest.approx(prices["total"] * asked / run)
    # The rows of the run's store, whoever asked.
    counts = json.loads((tmp_path / "runs/small/steps/read.json").read_text())["result"]["counts"]
    assert counts["ner_known_before"] == rows["ner"]["asked"] + sentences - found["text"]["distinct"]
    # Now all is known.
    last = planned(brd_here("plan", path, "--json", "--again"))
    assert last["reading"]["asked_now"] == 0
    assert [row["to_ask"] for row in last["reading"]["behaviors"].values()] == [0, 0]
    assert last["reading"]["seconds"]["once"] == 0


def test_a_second_plan_asks_nothing_until_it_is_told_to(brd_here: Brd, recipe_file: Any, server: Server) -> None:
    path = recipe_file(teacher=at(server), arms=["base"], reading={"sentences": 200})
    first = planned(brd_here("plan", path, "--json"))
    asked = len(server.questions())
    again = planned(brd_here("plan", path, "--json", "--set", f"teacher.prices={json.dumps(PRICES)}"))
    assert len(server.questions()) == asked
    assert again["reading"]["asked_now"] == 0
    assert again["reading"]["prices"]["currency"] == "EUR"
    for name, row in first["reading"]["behaviors"].items():
        same = again["reading"]["behaviors"][name]
        assert (same["to_ask"], same["tokens"]) == (row["to_ask"], row["tokens"])
        assert same["seconds"]["expected"] == pytest.approx(row["seconds"]["expected"])
    shown = brd_here("plan", path)
    assert "nothing was asked: measured by an earlier plan" in shown.stdout
    # Fewer requests at once is another speed.
    planned(brd_here("plan", path, "--json", "--set", "teacher.server.concurrency=2", "--sentences", "6"))
    assert len(server.questions()) == asked + 2 * 6
    planned(brd_here("plan", path, "--json", "--set", "teacher.server.concurrency=2", "--sentences", "5", "--again"))
    assert len(server.questions()) == asked + 2 * 6 + 2 * 5


def test_what_others_paid_for_is_known(brd_here: Brd, recipe_file: Any, tmp_path: Path, server: Server) -> None:
    path = recipe_file(teacher=at(server), arms=["base"])
    assert brd_here("read", path, "--out", "before").returncode == 0
    parquet = ["--format", "parquet", "--note", "ours", "--out", "known.parquet", "--behaviors", "ner"]
    assert brd_here("export", "before", *parquet).returncode == 0
    found = planned(brd_here("plan", path, "--json", "--set", "reading.known=[known.parquet]"))
    rows = found["reading"]["behaviors"]
    assert rows["ner"] == {"known": found["text"]["distinct"], "asked": 0, "to_ask": 0}
    assert rows["qra"]["known"] == 0
    assert rows["qra"]["asked"] + rows["qra"]["to_ask"] == found["text"]["distinct"]


def test_the_tables_say_what_was_looked_at(brd_here: Brd, recipe_file: Any, server: Server) -> None:
    path = recipe_file(teacher=at(server, prices=PRICES), arms=["base"], reading={"sentences": 10**6})
    shown = brd_here("plan", path).stdout
    for words in (
        "held out (counted)",
        "fewer than reading.sentences",
        "price, EUR",
        "batch interface",
        "not estimated",
    ):
        assert words in shown
    shown = brd_here("plan", path, "--set", "teacher.server.concurrency=500").stdout
    assert "the teacher was never full (500 sentences at once)" in shown


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (["teacher.server.base_url=http://127.0.0.1:9/v1"], 3, "is the server running?"),
        (["teacher.server.key_variable=NO_SUCH_KEY"], 2, "NO_SUCH_KEY is not set"),
        (["text.source=gone.txt"], 2, "gone.txt: no such file"),
        (["student.model=./gone", "arms=[brd]"], 2, "no such model folder"),
        (["teacher.prices={input: 1}"], 2, "teacher.prices"),
        (["teacher.prices={input: 1, output: 1, batch: 50}"], 2, "teacher.prices.batch"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_asked(
    brd_here: Brd, recipe_file: Any, server: Server, changes: list[str], code: int, words: str
) -> None:
    path = recipe_file(teacher=at(server), arms=["base"])
    done = brd_here("plan", path, *(part for change in changes for part in ("--set", change)))
    lines = [line for line in done.stderr.splitlines() if line.startswith("brd: ")]
    assert (done.returncode, len(lines)) == (code, 1), done.stderr
    assert words in lines[0]
    assert not server.questions()


def test_batches_are_priced_and_not_timed(brd_here: Brd, recipe_file: Any, server: Server) -> None:
    teacher = at(server, prices=PRICES)
    teacher["server"]["batch"] = True
    path = recipe_file(teacher=teacher, arms=["base"], reading={"sentences": 200})
    found = planned(brd_here("plan", path, "--json"))
    reading, asked = found["reading"], len(server.questions())
    # One call of each behavior, one by one: a batch may take a day.
    assert asked == reading["asked_now"] == 2 * 34
    assert reading["seconds"] is None
    left = sum(row["to_ask"] for row in reading["behaviors"].values())
    # Of what the server's cache gave nothing is counted on.
    assert reading["prices"]["total"] == pytest.approx(left * (100 * 2 + 3 * 10) / 1e6)
    assert reading["prices"]["batch"]["total"] == pytest.approx(reading["prices"]["total"] / 2)
    shown = brd_here("plan", path).stdout
    assert "time: not estimated: a provider answers batches when it suits it" in shown
    assert "the run pays the batch interface" in shown
    prices = json.dumps({"input": 2.0, "output": 10.0})
    shown = brd_here("plan", path, "--set", f"teacher.prices={prices}").stdout
    assert "what the batch interface asks is not known (teacher.prices.batch)" in shown
    assert len(server.questions()) == asked


def test_a_cluster_is_asked_once_and_not_timed(
    brd_here: Brd, recipe_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brd.teachers import ray_data

    calls: list[int] = []

    def answers(settings: Teacher, shared: Any, rows: list[dict[str, str]]) -> Iterator[ray_data.Row]:
        calls.append(len(rows))
        for row in rows:
            text = ANSWERS[row["suffix"].rpartition("\n")[2]]
            yield ray_data.Row(row["key"], row["shard"], Answer(text, 100, 3, True), "")

    monkeypatch.setattr(ray_data, "start", lambda: SimpleNamespace(data=SimpleNamespace(from_items=list)))
    monkeypatch.setattr(ray_data, "answers", answers)
    path = recipe_file(
        teacher={"kind": "vllm", "model": "org/model-7b", "prices": PRICES}, arms=["base"], reading={"sentences": 200}
    )
    found = planned(brd_here("plan", path, "--json"))["reading"]
    assert calls == [34, 34]
    assert found["seconds"] is None
    for row in found["behaviors"].values():
        assert (row["tokens"]["input"], row["tokens"]["output"]) == (100 * row["to_ask"], 3 * row["to_ask"])
        assert "seconds" not in row
    shown = brd_here("plan", path).stdout
    assert "time: not estimated: every call starts vLLM's engines anew" in shown


def test_a_cluster_that_is_not_here_is_one_line(
    brd_here: Brd, recipe_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    path = recipe_file(teacher={"kind": "vllm", "model": "org/model-7b"}, arms=["base"])
    done = brd_here("plan", path)
    assert (done.returncode, "Ray is not installed here" in done.stderr) == (2, True)


def test_a_server_that_goes_away_leaves_what_it_answered(brd_here: Brd, recipe_file: Any, tmp_path: Path) -> None:
    def plan(asked: Asked) -> Reply:
        if len(server.questions()) > 9:
            server.go_down()
        return answering(asked)

    with Server(plan) as server:
        path = recipe_file(teacher=at(server), arms=["base"])
        assert brd_here("plan", path).returncode == 3
        kept = sum(1 for _ in (tmp_path / "runs/small/readings").glob("readings-*.parquet"))
        assert kept == 1
        server.plan = answering
        server.start()
        before = len(server.questions())
        found = planned(brd_here("plan", path, "--json"))
        assert found["reading"]["behaviors"]["ner"]["known"] >= 5
        assert found["reading"]["asked_now"] == len(server.questions()) - before


class InProcess:
    """A teacher with a prefix of 50 tokens, a sentence of as many as it has words, and answers of 4."""

    context_length = 1000

    def __init__(self, settings: Teacher) -> None:
        self.calls: list[int] = []

    def identity(self) -> dict[str, str]:
        return {"model": "scripted"}

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        self.calls.append(len(suffixes))
        for index, suffix in enumerate(suffixes):
            yield index, Answer(ANSWERS[suffix.rpartition("\n")[2]], 50 + len(suffix.split()), 4, True)

    def close(self) -> None:
        pass


def test_a_teacher_here_reads_the_prefix_once(
    brd_here: Brd, recipe_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "LazyTeacher", InProcess)
    path = recipe_file(reading={"sentences": 300}, arms=["base"])
    row = planned(brd_here("plan", path, "--json"))["reading"]["behaviors"]["ner"]
    assert row["prefix_tokens"] == 50
    assert row["tokens"]["output"] == 4 * row["to_ask"]
    assert brd_here("read", path).returncode == 0
    counts = json.loads((tmp_path / "runs/small/steps/read.json").read_text())["result"]["counts"]
    assert counts["ner_asked"] == row["to_ask"]
    both = 2 * (row["tokens"]["input"] - 50 + 50 * row["to_ask"])
    assert both == pytest.approx(counts["prompt_tokens"], rel=0.05)


def test_training_is_measured_and_its_tokens_are_those_of_the_run(
    brd_here: Brd, recipe_file: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(teachers, "LazyTeacher", InProcess)
    variants = {"brd_long": {"arm": "brd", "set": {"training.epochs": 2.0}}}
    arms = ["base", "further", "brd", "no_qra", "brd_long"]
    path = recipe_file(
        reading={"sentences": 60}, arms=arms, variants=variants, composing={"mix": {"ner": 1.5}, "row_tokens": 32}
    )
    found = planned(brd_here("plan", path, "--json"))
    training, out = found["training"], tmp_path / "runs/small"
    assert not (out / "plan.tmp").exists()
    assert set(training["arms"]) == {"further", "brd", "no_qra", "brd_long"}
    # All of them take the same steps.
    assert training["costs"].keys() == {"further"}
    assert all(training["costs"]["further"][key] > 0 for key in ("start", "step", "end"))
    arms_take = sum(a["seconds"] for a in training["arms"].values())
    assert training["seconds"]["expected"] == pytest.approx(training["once"] + arms_take)
    without = planned(brd_here("plan", path, "--json", "--no-training"))["training"]
    assert without["costs"] is None
    assert without["arms"]["brd"]["tokens"] == training["arms"]["brd"]["tokens"]
    assert brd_here("run", path, "--until", "compose").returncode == 0
    rows = {arm: json.loads((out / f"composed/{arm}/meta.json").read_text())["rows"] for arm in training["arms"]}
    for arm, told in training["arms"].items():
        assert told["rows"] == pytest.approx(rows[arm], rel=0.1)
        # Rows of 32 tokens, two a step; every arm trains as long as brd.
        assert told["tokens"] == pytest.approx(32 * rows["brd"] * (2 if arm == "brd_long" else 1), rel=0.1)
        assert told["steps"] == told["tokens"] / 64
    parameters = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    assert training["parameters"] == parameters
    assert found["disk"]["students"] == 5 * 4 * parameters
    files = sum(path.stat().st_size for path in out.glob("composed/*/tokens.bin"))
    assert found["disk"]["token_files"] == pytest.approx(files, rel=0.1)


def test_prices_change_no_fingerprint_and_no_identity(recipe_file: Any, tmp_path: Path, server: Server) -> None:
    def prints(prices: dict[str, Any] | None, **teacher: Any) -> list[str]:
        recipe = load(str(recipe_file(teacher={**teacher, "prices": prices})))
        pipeline = Pipeline(recipe, RunFolder(tmp_path / "run", recipe), None)  # type: ignore[arg-type]
        return [pipeline.read_print(), pipeline.train_print("brd"), json.dumps(recipe.teacher.answering())]

    for teacher in (at(server), {}):
        assert prints(None, **teacher) == prints(PRICES, **teacher)
    assert "prices" not in prints(PRICES)[-1]
    assert Prices(input=1, output=2).batch is None
