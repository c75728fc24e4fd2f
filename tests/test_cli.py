"""The command line as a user meets it: one process a call, exit codes, one line an error."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Brd = Callable[..., subprocess.CompletedProcess[str]]


def failed(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("brd: ")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


def test_help_is_quick(brd: Brd) -> None:
    brd("--help")
    start = time.perf_counter()
    done = brd("--help")
    assert time.perf_counter() - start < 0.5
    assert done.returncode == 0
    steps = ("run", "demo", "read", "compose", "train", "evaluate", "report", "validate", "preview", "plan", "audit")
    for command in (*steps, "score", "tasks", "contamination", "export", "push"):
        assert f"  {command} " in done.stdout


def test_the_whole_road(brd: Brd, recipe_file: Any, tmp_path: Path) -> None:
    """One run to the page, then the same command, then changes: each reruns exactly what depends on it."""
    path = recipe_file()
    done = brd("run", path, "--out", "out")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["arms"]) == ["base", "further", "brd"]
    for arm in summary["arms"].values():
        assert {"accuracy", "standard_error", "n", "majority"} <= set(arm["tasks"]["sst2"])
        assert 0 <= arm["macro_average"] <= 1
        figures = {"loss", "well_formed", "verified", "entity_f1", "answer_f1", "original_loss"}
        assert figures <= set(arm["reading"])
        assert figures <= set(arm["reading_prompted"])
    assert {"asked", "well_formed", "verified"} <= set(summary["readings"]["ner"])
    assert set(summary["seconds"]) == {"read", "compose", "train", "evaluate"}
    assert summary["peak_rss_mb"] > 0
    assert summary["trained_tokens"]["brd"] == summary["trained_tokens"]["further"] > 0
    assert summary["trained_tokens"]["base"] == 0
    about = json.loads((out / "run.json").read_text())
    assert {"versions", "hardware", "seed", "fingerprints", "commit"} <= set(about)
    assert 'id="audit"' in (out / "report.html").read_text(encoding="utf-8")
    assert json.loads((out / "audit.json").read_text())["behaviors"]["ner"]["asked"] > 0
    assert (out / "metrics.jsonl").read_text().count('"train_step"') > 0

    from transformers import AutoModelForCausalLM, AutoTokenizer

    for arm in ("base", "further", "brd"):
        AutoModelForCausalLM.from_pretrained(out / "students" / arm)
        AutoTokenizer.from_pretrained(out / "students" / arm)

    def reran(*changes: str) -> set[str]:
        again = brd("run", path, "--out", "out", *(part for c in changes for part in ("--set", c)))
        assert again.returncode == 0, again.stderr
        started = {line.split(":")[0] for line in again.stderr.splitlines() if line.endswith(": started")}
        skipped = {line.split(":")[0] for line in again.stderr.splitlines() if line.endswith("up to date, skipped")}
        assert len(started | skipped) == 13
        assert not started & skipped
        return started

    arms = ("base", "further", "brd")
    tested = {*(f"evaluate.{arm}" for arm in arms), "report"}
    # Sizes of batches and shards cannot change a result.
    assert reran("evaluation.batch_tokens=512", "reading.shard_rows=9", "reading.floor=0.9") == set()
    assert reran("evaluation.limit=3") == tested
    assert reran("evaluation.limit=3", "training.learning_rate=2e-4") == {
        *("train.further", "train.brd", "skill.further", "skill.brd", "evaluate.further", "evaluate.brd", "report"),
    }


def test_each_step_alone_asks_for_the_one_before(brd: Brd, recipe_file: Any, tmp_path: Path) -> None:
    path = recipe_file(evaluation={"tasks": ["cb"], "limit": 2, "reading_prompted": False})
    failed(brd("train", path), 2, "compose.brd has not been run", "brd compose RECIPE")
    for step in ("read", "compose", "train", "evaluate", "report"):
        done = brd(step, path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "small" / "report.html").exists()
    done = brd("validate", path)
    assert "would run nothing" in done.stdout


def test_validate_tells_what_would_run_and_loads_no_model(brd: Brd, recipe_file: Any) -> None:
    done = brd("validate", recipe_file())
    assert done.returncode == 0, done.stderr
    assert "would run everything" in done.stdout
    assert "task sst2: ok" in done.stdout


def test_preview_shows_sentences_with_their_readings(brd: Brd, recipe_file: Any) -> None:
    done = brd("preview", recipe_file(), "-n", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Entities:") == 2
    assert done.stdout.count("Question:") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "no such recipe"]),
        (["run", "{recipe}", "--set", "text.source=gone.txt"], ["gone.txt", "no such file"]),
        (["run", "{recipe}", "--set", "training.epochs=-1"], ["training.epochs"]),
        (["run", "{recipe}", "--set", "teacher.kind=oracle"], ["unknown teacher 'oracle'"]),
        (["run", "{recipe}", "--set", "teacher.model=./gone"], ["gone", "no such model folder"]),
        (["run", "{recipe}", "--until", "teach"], ["--until teach", "no such step"]),
        (["validate", "{recipe}", "--set", "evaluation.tasks=[sst]"], ["unknown task 'sst'", "sst2"]),
        (["run", "{recipe}", "--out", "{recipe}"], ["is a file"]),
        (["run", "{recipe}", "--out", "full"], ["not empty"]),
        (["run"], ["RECIPE"]),
        (["walk"], ["walk"]),
    ],
)
def test_wrong_input_exits_2_with_one_line(
    brd: Brd, recipe_file: Any, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    recipe = str(recipe_file())
    failed(brd(*(a.format(recipe=recipe) for a in arguments)), 2, *words)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"


def test_a_model_folder_without_a_tokenizer(brd: Brd, recipe_file: Any, tmp_path: Path, tiny_model: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    failed(brd("run", recipe_file(teacher={"model": str(bare)})), 2, "bare", "tokenizer")
    done = brd("run", recipe_file(student={"model": str(bare)}))
    failed(done, 2, "bare", "tokenizer")


def test_a_teacher_that_cannot_be_reached_exits_3(brd: Brd, recipe_file: Any) -> None:
    done = brd("run", recipe_file(), "--set", "teacher.model=nobody/nothing", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    failed(done, 3, "nobody/nothing")


def test_a_prompt_longer_than_the_teachers_context(
    brd: Brd, recipe_file: Any, tmp_path: Path, tiny_model: Path
) -> None:
    import shutil

    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    failed(brd("run", recipe_file(teacher={"model": str(short)})), 2, "context", "128")


def test_the_folder_of_another_recipe_is_not_touched(brd: Brd, recipe_file: Any, tmp_path: Path) -> None:
    assert brd("read", recipe_file(), "--out", "out").returncode == 0
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*"))
    failed(brd("run", recipe_file(name="other"), "--out", "out"), 2, "another recipe", "'small'", "'other'")
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*")) == before


def test_fresh_moves_the_old_run_aside(brd: Brd, recipe_file: Any, tmp_path: Path) -> None:
    path = recipe_file()
    for _ in range(2):
        done = brd("run", path, "--out", "out", "--until", "read", "--fresh")
        assert done.returncode == 0, done.stderr
        assert "read: started" in done.stderr
    assert len(list(tmp_path.glob("out.before-*"))) == 1


def test_a_full_disk_is_one_line_and_what_was_written_stays(brd: Brd, recipe_file: Any, tmp_path: Path) -> None:
    """A small file system of its own where that can be mounted, else a limit on file sizes."""
    path = recipe_file()
    out = tmp_path / "small-disk"
    out.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", out], capture_output=True
    ).returncode if os.geteuid() == 0 else False  # fmt: skip
    try:
        if mounted:
            done = brd("run", path, "--out", out / "run")
        else:
            import resource

            done = brd("run", path, "--out", out / "run", preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_FSIZE, (300_000, 300_000)))  # fmt: skip
        failed(done, 2, "the disk is full", "run the same command again")
        assert (out / "run" / "readings" / "paragraphs.parquet").exists()
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=256m", out], check=True)
        again = brd("run", path, "--out", out / "run", "--until", "train")
        assert again.returncode == 0, again.stderr
        assert "read: up to date, skipped" in again.stderr
    finally:
        if mounted:
            subprocess.run(["umount", out], check=True)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("read", signal.SIGINT),
        ("compose.further", signal.SIGTERM),
        ("train.brd", signal.SIGINT),
        ("evaluate.base", signal.SIGTERM),
    ],
)
def test_ctrl_c_in_a_step_and_the_same_command_again(
    recipe_file: Any, tmp_path: Path, step: str, number: signal.Signals
) -> None:
    path = recipe_file(
        training={"epochs": 6.0}, evaluation={"tasks": ["boolq"], "limit": 10, "reading_prompted": False}
    )
    last = step.split(".")[0]
    command = [sys.executable, "-m", "brd", "run", str(path), "--out", "out", "--until", last]
    # Tests that were started in a shell's background inherit that Ctrl-C is ignored.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **heard)
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(f"{step}: started"):
            process.send_signal(number)
            break
    seen += process.stderr.readlines()
    assert process.wait(60) == 130, "".join(seen)
    assert "brd: interrupted; what was done is kept" in "".join(seen)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"{step}: started" in done.stderr
    assert f"{step}: done" in done.stderr
