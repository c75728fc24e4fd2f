"""``brd score`` and ``brd contamination`` as a user runs them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

Brd = Callable[..., subprocess.CompletedProcess[str]]

TASK: dict[str, Any] = {
    "name": "birds",
    "version": 1,
    "about": "Does a sentence speak of a bird?",
    "source": {"file": "birds.jsonl"},
    "templates": {
        "question": {
            "prompt": "{{ text | trim }}\nQuestion: Is this about a bird?\nAnswer:",
            "candidates": [" no", " yes"],
            "unconditional": "Answer:",
        },
        "short": {"prompt": "{{ text | trim }} Bird:", "candidates": [" no", " yes"]},
    },
    "label": "label",
    "labels": {0: 0, 1: 1},
    "citation": "our own",
    "licence": "CC0",
}
TEXTS = [
    ("A heron stood in the shallow water.", 1),
    ("The train was late again.", 0),
    ("Two gulls fought over a crust.", 1),
    ("Bread was baked in the yard.", 0),
    ("An owl called from the barn all through the long and windless night.", 1),
    ("The letter came on a Tuesday.", 0),
]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS]
    (tmp_path / "birds.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "birds.yaml").write_text(yaml.safe_dump(TASK), encoding="utf-8")
    return tmp_path / "birds.yaml"


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def failed(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("brd: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last


def test_scores_of_any_model_without_a_recipe(brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path) -> None:
    asked = ("score", tiny_model, "--tasks", f"{birds},cb", "--limit", "5", "--dtype", "float32", "--out", "a")
    done = ok(brd_here(*asked, "--templates", "all"))
    for word in ("birds", "birds/short", "cb/statement", "macro-average", "most predicted"):
        assert word in done.stdout
    summary = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert summary["dtype"] == "float32"
    birds_figures = summary["tasks"]["birds"]
    assert birds_figures["n"] == 5
    assert birds_figures["low"] <= birds_figures["accuracy"] <= birds_figures["high"]
    assert {"auc", "calibrated_accuracy", "calibration_error", "macro_f1", "preferred"} <= set(birds_figures)
    assert summary["spread"]["birds"]["templates"] == 2
    rows = pq.read_table(tmp_path / "a" / "birds.question.parquet").to_pylist()
    assert [row["item"] for row in rows] == [f"birds/{n}" for n in range(5)]
    assert rows[0]["candidates"] == [" no", " yes"]
    assert rows[0]["gold"] == 1
    assert rows[0]["template"] == "question"
    assert rows[0]["truncated"] == 0
    assert rows[0]["prediction"] == max((0, 1), key=lambda n: rows[0]["logprobs"][n])
    # What is there is not scored again: the model is not even loaded.
    before = (tmp_path / "a" / "birds.question.parquet").stat().st_mtime_ns
    ok(brd_here(*asked, "--templates", "all"))
    assert (tmp_path / "a" / "birds.question.parquet").stat().st_mtime_ns == before


def test_another_metric_is_read_off_and_another_limit_is_scored(
    brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path
) -> None:
    asked = ("score", tiny_model, "--tasks", birds, "--dtype", "float32", "--out", "a")
    ok(brd_here(*asked))
    path = tmp_path / "a" / "birds.question.parquet"
    first = pq.read_table(path)
    ok(brd_here(*asked, "--metric", "sum"))
    again = pq.read_table(path)
    assert again.drop(["prediction"]).equals(first.drop(["prediction"]))
    ok(brd_here(*asked, "--metric", "pmi"))
    assert all(row["unconditional"] for row in pq.read_table(path).to_pylist())
    ok(brd_here(*asked, "--shots", "2"))
    # The examples come from the task's own items, which are then not scored.
    assert [row["item"] for row in pq.read_table(path).to_pylist()] == [f"birds/{n}" for n in range(2, 6)]


def test_halves_are_disjoint(brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path) -> None:
    found = {}
    for half in ("a", "b"):
        asked = ("score", tiny_model, "--tasks", birds, "--dtype", "float32", "--half", half, "--out", half)
        ok(brd_here(*asked))
        assert json.loads((tmp_path / half / "scores.json").read_text())["tasks"]["birds"]["half"] == half
        found[half] = [row["item"] for row in pq.read_table(tmp_path / half / "birds.question.parquet").to_pylist()]
    assert sorted(found["a"] + found["b"]) == [f"birds/{n}" for n in range(6)]
    failed(brd_here("score", "--compare", "a", "b"), "different items")


def test_a_killed_run_ends_with_the_same_bytes(brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{text} {n}", "label": label}) for n in range(700) for text, label in TEXTS]
    (tmp_path / "birds.jsonl").write_text("\n".join(rows), encoding="utf-8")
    asked = ["score", str(tiny_model), "--tasks", f"cb,{birds}", "--dtype", "float32", "--templates", "all"]
    command = [sys.executable, "-m", "brd", *asked, "--out", "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (tmp_path / "killed" / "birds.question.tmp").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "killed" / "cb.question.parquet").exists()
    assert not (tmp_path / "killed" / "birds.question.parquet").exists()
    ok(brd_here(*asked, "--out", "killed"))
    ok(brd_here(*asked, "--out", "whole"))
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


def test_two_models_are_compared_item_by_item(brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path) -> None:
    asked = ("score", tiny_model, "--tasks", f"{birds},cb", "--dtype", "float32")
    ok(brd_here(*asked, "--out", "a"))
    ok(brd_here(*asked, "--out", "b"))
    done = ok(brd_here("score", "--compare", "a", "b"))
    assert "birds.question" in done.stdout
    assert "0.0 [0.0, 0.0]" in done.stdout
    assert "1.0000" in done.stdout
    ok(brd_here(*asked, "--limit", "4", "--out", "b"))
    failed(brd_here("score", "--compare", "a", "b"), "birds.question", "6 in a/birds", "4 in b/birds", "birds/4")
    changed = {**TASK, "templates": {"question": {**TASK["templates"]["question"], "prompt": "{{ text | trim }} So:"}}}
    birds.write_text(yaml.safe_dump(changed), encoding="utf-8")
    ok(brd_here(*asked, "--out", "b"))
    failed(brd_here("score", "--compare", "a", "b"), "other prompts", "birds/0")
    failed(brd_here("score", "--compare", "a", "nowhere"), "nowhere", "no item scores")


def test_the_teachers_scores_are_cached_and_set_against_the_students(
    brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRD_CACHE", str(tmp_path / "cache"))
    asked = ("score", tiny_model, "--tasks", birds, "--dtype", "float32", "--out", "a", "--teacher")
    done = ok(brd_here(*asked, tiny_model))
    found = json.loads((tmp_path / "a" / "divergence.json").read_text())["birds.question"]
    assert found["raw"]["kl"] == pytest.approx(0, abs=1e-6)
    assert found["raw"]["cross_entropy"] == pytest.approx(found["raw"]["teacher_entropy"], abs=1e-6)
    assert {"raw", "temperature", "prior"} <= set(found)
    assert "cross-entropy" in done.stdout
    cached = list((tmp_path / "cache" / "scores").glob("*/birds.question.parquet"))
    assert len(cached) == 1
    before = cached[0].stat().st_mtime_ns
    ok(brd_here(*asked, tiny_model))
    assert cached[0].stat().st_mtime_ns == before
    ok(brd_here(*asked, "a/teacher"))
    failed(brd_here(*asked, tmp_path / "cache"), "neither a folder of scores", "config.json")


def test_contamination_of_a_corpus(brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(
        "It was said that an owl called from the barn all through the long and windless night.\n"
    )
    ok(brd_here("score", tiny_model, "--tasks", birds, "--dtype", "float32", "--out", "a"))
    done = ok(brd_here("contamination", "corpus.txt", "--tasks", birds, "--scores", "a", "--out", "flagged.json"))
    assert "birds/4" in done.stdout
    assert "without the flagged" in done.stdout
    flagged = json.loads((tmp_path / "flagged.json").read_text())["birds"]
    assert list(flagged["flagged"]) == ["birds/4"]
    failed(brd_here("contamination", "nothing.txt", "--tasks", birds), "nothing.txt")
    failed(brd_here("contamination", "corpus.txt", "--tasks", birds, "--n", "1"), "1")


def test_shipped_tasks_are_listed(brd_here: Brd) -> None:
    listed = ok(brd_here("tasks")).stdout.splitlines()
    assert len(listed) == 16
    assert any(line.startswith("sst2  (templates review, question)  Sentiment") for line in listed)


def test_wrong_input_is_one_line(brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path) -> None:
    failed(brd_here("score", tiny_model, "--tasks", "sst3"), "unknown task 'sst3'", "sst2")
    failed(brd_here("score", tiny_model), "--tasks")
    failed(brd_here("score", tiny_model, "--tasks", birds, "--metric", "tokens_mean"), "token_mean")
    failed(brd_here("score", tiny_model, "--tasks", birds, "--dtype", "float8"), "float32")
    failed(brd_here("score", tiny_model, "--tasks", birds, "--half", "c"), "--half c", "a or b")
    failed(brd_here("score", tiny_model, "--tasks", birds, "--templates", "shrt"), "short")
    failed(brd_here("score", tiny_model, "--tasks", f"{birds},{birds}"), "named twice")
    failed(brd_here("score", tmp_path, "--tasks", birds), "config.json")
    failed(brd_here("score", tiny_model, "--tasks", birds, "--shots", "9"), "9 examples")
    lines = (tmp_path / "birds.jsonl").read_text().splitlines()
    (tmp_path / "birds.jsonl").write_text("\n".join([*lines[:3], '{"text": "A broken', *lines[3:]]))
    failed(brd_here("score", tiny_model, "--tasks", birds), "birds.jsonl:4", "not valid JSON")
    generative = {"examples": [{"input": "Say hello.", "target": "hello"}]}
    (tmp_path / "hello.json").write_text(json.dumps(generative))
    failed(brd_here("score", tiny_model, "--tasks", "hello.json"), "hello.json", "generative")


def test_broken_weights_name_the_item_and_keep_earlier_tasks(
    brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    # Only what speaks of an owl is broken; the other task has no such word.
    owl = tokenizer(" owl")["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[owl] = float("nan")
        model.lm_head.weight.data = model.lm_head.weight.detach().nan_to_num()
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    done = brd_here("score", "broken", "--tasks", f"cb,{birds}", "--limit", "5", "--dtype", "float32", "--out", "a")
    failed(done, "item birds/4", "float32")
    assert (tmp_path / "a" / "cb.question.parquet").exists()
    assert not (tmp_path / "a" / "birds.question.parquet").exists()


def test_a_model_without_a_pad_token_works(brd_here: Brd, tiny_model: Path, birds: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    ok(brd_here("score", "plain", "--tasks", birds, "--dtype", "float32"))
    assert (tmp_path / "scores" / "plain" / "scores.json").exists()
