"""What `brd plan` says that arms ask of the teacher and train with it, against what the run then does."""

import json
from pathlib import Path
from typing import Any

import pytest

from brd.recipe import load
from brd.training import launch
from brd.training.distillation import signals
from openai_server import Server
from plan.test_plan import PRICES, InProcess, planned
from test_distillation_arms import SHORT, teacher
from test_task_arms import by_server, jsonl, manifest, record, seas, server

__all__ = ["seas", "server", "teacher"]


def test_what_composing_asks_is_what_was_told(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any], server: Server
) -> None:
    # More inputs than a sample has.
    jsonl(tmp_path / "train.jsonl", [record(n) for n in range(10, 70)])
    arms = ["base", "seq_kd", "seq_kd@1", "task_distillation", "relaxed", "brd+relaxed"]
    sections = {**seas, "training": {"epochs": 6.0}, "reading": {"sentences": 12, "held_out_sentences": 1}}
    path = recipe_file(**sections, teacher={**by_server(server), "prices": PRICES}, arms=arms)
    found = planned(brd_here("plan", path, "--no-training", "--json"))
    told, asked = found["composing"], len(server.questions())
    rows = told["rows"]
    texts, options, ner, qra = rows.values()
    assert [*rows] == [
        "continuations (8 + 6)",
        "task inputs, options",
        "task inputs, ner",
        "task inputs, qra",
    ]
    assert found["reading"]["asked_now"] + told["asked_now"] == asked
    # The readings' own sample tells of the inputs' sentences.
    assert (ner["asked"], qra["asked"], ner["to_ask"]) == (0, 0, 60)
    assert options["asked"] + options["to_ask"] == 60
    assert options["asked"] >= 20
    assert told["seconds"]["expected"] > 0
    assert brd_here("run", path, "--until", "read").returncode == 0
    before = len(server.questions())
    assert brd_here("run", path, "--until", "compose").returncode == 0
    out = tmp_path / "runs/small"
    by_run = len(server.questions()) - before
    counts = manifest(out, "compose.seq_kd")["answers"]
    assert counts["asked"] == pytest.approx(texts["to_ask"], abs=16)
    assert counts["known"] == texts["asked"] > 10
    assert by_run - counts["asked"] == options["to_ask"] + ner["to_ask"] + qra["to_ask"]
    # Nobody was asked twice, and a prompt takes 100 tokens, 80 of them from the cache, and gives 3.
    assert max(server.times[one] for one in server.times if one) <= 2
    run = sum(row["to_ask"] for row in rows.values())
    assert told["prices"]["total"] == pytest.approx((20 * run * 2 + 80 * run * 0.5 + 3 * run * 10) / 1e6)
    assert "batch" not in told["prices"]
    # Now all is there, and a plan asks nothing.
    again = planned(brd_here("plan", path, "--no-training", "--json", "--again"))["composing"]
    assert again["asked_now"] == 0
    assert all(row["to_ask"] == 0 for row in again["rows"].values())
    assert again["seconds"]["expected"] == 0


def test_a_second_plan_of_arms_asks_nothing(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any], server: Server
) -> None:
    jsonl(tmp_path / "train.jsonl", [record(n) for n in range(10, 70)])
    path = recipe_file(**seas, teacher=by_server(server), arms=["base", "task_distillation"])
    first = planned(brd_here("plan", path, "--no-training", "--json"))["composing"]
    asked = len(server.questions())
    again = planned(brd_here("plan", path, "--no-training", "--json"))["composing"]
    assert len(server.questions()) == asked
    assert again["rows"]["task inputs, options"]["tokens"] == first["rows"]["task inputs, options"]["tokens"]
    assert again["seconds"]["expected"] == pytest.approx(first["seconds"]["expected"])
    # Of what another arm asks besides a sample is asked, and nothing else.
    more = planned(brd_here("plan", path, "--no-training", "--json", "--set", "arms=[task_distillation,seq_kd]"))
    assert more["composing"]["rows"]["continuations (8 + 6)"]["asked"] == len(server.questions()) - asked > 0
    shown = brd_here("plan", path, "--no-training", "--set", "arms=[task_distillation,seq_kd]").stdout
    assert "task inputs, options" in shown


def test_of_a_large_corpus_continuations_are_counted_and_none_is_asked(
    recipe_file: Any, brd_here: Any, seas: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brd.plan.corpus.EXACT", 0)
    path = recipe_file(**seas, teacher=by_server(server), arms=["base", "seq_kd"])
    found = planned(brd_here("plan", path, "--no-training", "--json"))
    assert not found["text"]["exact"]
    row = found["composing"]["rows"]["continuations (8 + 6)"]
    assert len(server.questions()) == found["reading"]["asked_now"]
    assert (row["asked"], row["assumed"]) == (0, True)
    assert row["tokens"]["output"] == 6 * row["to_ask"] > 0
    shown = brd_here("plan", path, "--no-training").stdout
    assert "at most" in shown
    assert "which texts the run takes is not known" in shown


def test_a_teacher_that_is_scored_is_counted_and_timed(
    recipe_file: Any, brd_here: Any, tmp_path: Path, seas: dict[str, Any]
) -> None:
    jsonl(tmp_path / "train.jsonl", [record(n) for n in range(10, 90)])
    path = recipe_file(**seas, arms=["base", "task_distillation"])
    row = planned(brd_here("plan", path, "--no-training", "--json"))["composing"]["rows"]["task inputs, candidates"]
    assert row["asked"] + row["to_ask"] == 80
    assert 25 < row["asked"] < 80
    assert row["tokens"]["output"] == 0
    # "The Aral sea was rough on day 10 of the journey. ..." and two candidates.
    assert 15 < row["tokens"]["input"] / row["to_ask"] < 40
    assert row["seconds"]["expected"] > 0
    assert brd_here("run", path, "--until", "compose").returncode == 0
    assert manifest(tmp_path / "runs/small", "compose.task_distillation")["answers"]["asked"] == row["to_ask"]


def test_the_teachers_passes_of_training_are_told(
    recipe_file: Any, brd_here: Any, tmp_path: Path, teacher: Path
) -> None:
    pytest.importorskip("trl")
    arms = ["kd", "kd@1", "kd_soft", "kd+brd", "gkd", "minillm"]
    sections = {**SHORT, "arms": arms, "variants": {"kd_soft": {"arm": "kd", "set": {"distillation.weight": 1.0}}}}
    sections["distillation"] = {**SHORT["distillation"], "teacher_model": str(teacher)}
    path = recipe_file(**sections)
    found = planned(brd_here("plan", path, "--json"))
    told = found["training"]
    # Each link of a chain is an arm, once; all that learn the same text with the same teacher share what it says.
    assert [*told["arms"]] == arms
    assert [*told["signals"]] == ["kd"]
    assert told["signals"]["kd"]["seconds"] > 0
    assert [*told["costs"]] == ["kd", "kd+brd", "gkd", "minillm"]
    # Of batches that the student writes in and of those it does not.
    assert told["costs"]["gkd"]["luck"] > 0
    assert all(told["costs"][name]["step"] > 0 for name in told["costs"])
    assert found["composing"] is None
    parts = told["arms"].values()
    total = told["once"] + told["signals"]["kd"]["seconds"] + sum(arm["seconds"] for arm in parts)
    assert told["seconds"]["expected"] == pytest.approx(total)
    # Of each token 32 ids in two bytes, 20 probabilities in one, and what is left of the mass in four.
    tokens = 32 * told["arms"]["kd"]["rows"]
    assert (told["signals"]["kd"]["tokens"], told["signals"]["kd"]["bytes"]) == (tokens, 88 * tokens)
    assert found["disk"]["signals"] == 88 * tokens
    assert not (tmp_path / "runs/small/signals").exists()
    # kd+brd has brd's token file, which no other arm has.
    assert found["disk"]["token_files"] == 2 * 32 * sum(told["arms"][arm]["rows"] for arm in arms)
    # The teacher in float32, which has 64 rows of embedding more.
    assert told["teacher_bytes"] > 4 * 2 * 32 * 49_152


def test_a_teacher_that_reads_documents_apart_is_asked_besides_and_once(
    recipe_file: Any, brd_here: Any, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str | None] = []
    plain = signals._of_rows

    def counted(rows: Any, part: int, about: Any, asked: Any) -> Any:
        parts.append(about.documents)
        return plain(rows, part, about, asked)

    monkeypatch.setattr(signals, "_of_rows", counted)
    variants = {"kd_apart": {"arm": "kd", "set": {"training.attention": "document"}}}
    sections = {**SHORT, "arms": ["kd", "kd_apart"], "variants": variants}
    sections["distillation"] = {**SHORT["distillation"], "teacher_model": str(teacher)}
    told = planned(brd_here("plan", recipe_file(**sections), "--json"))["training"]
    assert [*told["signals"]] == ["kd", "kd_apart"]
    by_row, apart = parts
    assert by_row is None
    assert apart is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["arms=[kd]", "distillation.drawn=500"], "distillation.top, distillation.drawn: 20 and 500 tokens take"),
        (["arms=[task_distillation]"], "task_data.inputs"),
    ],
)
def test_what_an_arm_cannot_is_told_before_anything_is_asked(
    recipe_file: Any, brd_here: Any, tmp_path: Path, changes: list[str], words: str
) -> None:
    done = brd_here("plan", recipe_file(**SHORT), *(part for change in changes for part in ("--set", change)))
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not [*tmp_path.glob("runs/small/readings/*")]


def test_rows_that_are_packed_whole_are_told_with_their_padding(
    recipe_file: Any, brd_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brd.teachers.LazyTeacher", InProcess)
    arms = ["further", "brd", "no_qra"]
    path = recipe_file(
        reading={"sentences": 200}, composing={"row_tokens": 512, "packing": "best_fit"}, arms=arms, evaluation={}
    )
    told = planned(brd_here("plan", path, "--no-training", "--json"))["training"]["arms"]
    assert brd_here("run", path, "--until", "compose").returncode == 0
    for arm in arms:
        meta = json.loads((tmp_path / f"runs/small/composed/{arm}/meta.json").read_text())
        fill = meta["tokens"] / meta["rows"] / 512
        assert fill < 0.95
        assert told[arm]["rows"] == pytest.approx(meta["rows"], rel=0.03)
        assert told[arm]["fill"] == pytest.approx(fill, abs=0.03)
        # All train as long as brd, and padding is not trained on.
        assert told[arm]["tokens"] == pytest.approx(told["brd"]["tokens"], rel=0.03)
    assert told["brd"]["tokens"] == pytest.approx(told["brd"]["steps"] * 2 * 512 * told["brd"]["fill"], rel=0.001)


def test_training_is_timed_with_its_processes(recipe_file: Any, brd_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Alone:
        def __init__(self, number: int, task: tuple[str, dict[str, Any], Any], logs: Path) -> None:
            started.append(number)
            self._task = task

        def result(self, told: launch.Told) -> Any:
            name, arguments, _ = self._task
            return launch.run(
                arguments["recipe"].training.model_copy(update={"processes": 1}), name, arguments, told, Path()
            )

    monkeypatch.setattr(launch, "_Started", Alone)
    told = planned(brd_here("plan", recipe_file(training={"processes": 2}, arms=["brd"]), "--json"))["training"]
    assert started == [2]
    assert told["arms"]["brd"]["seconds"] > 0
    assert load(str(recipe_file(arms=["brd"]))).training.processes == "auto"
