"""In which dtype a teacher reads: measured once, int8 only after a check, and a run goes on as it began."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brd import hardware, int8_check, recipe_teacher, remembered
from brd.inference import speed
from brd.reading.behavior import behaviors_of
from brd.reading.naming import Names
from brd.reading.reader import teacher_hash
from brd.recipe import Recipe, changed, load
from brd.teachers import LazyTeacher, int8_record, shared_prefix

Brd = Callable[..., CompletedProcess[str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a machine on which int8 reads twice as fast as float32, which beats bfloat16."""
    monkeypatch.setenv("BRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "fast_dtype", lambda: torch.float32)
    monkeypatch.setattr(speed, "_measured", lambda layers: {"float32": 2.0, "bfloat16": 9.0, "int8": 1.0})
    return tmp_path / "cache"


@pytest.fixture
def recipe(recipe_file: Callable[..., Path]) -> Recipe:
    return load(str(recipe_file(teacher={"dtype": "auto"})))


def put_on_record(
    recipe: Recipe, passed: bool = True, behaviors: tuple[str, ...] = ("ner", "qra"), **more: Any
) -> None:
    weights = shared_prefix.weights_here(recipe.teacher.model)
    assert weights
    for name in Names(recipe, behaviors_of(recipe.reading), ""):
        if name.behavior in behaviors:
            asked = int8_record.Asked(weights, False, "float32", name.prompt_hash, name.max_new_tokens)
            int8_record.record(asked, {"passed": passed, "layers": [[32, 64, 8]], **more})


def test_what_is_kept_comes_back_and_damage_means_measuring_again(cache: Path) -> None:
    about = {"layers": [[1, 2, 3]], "threads": 2}
    assert remembered.recall("speed", about) is None
    assert not remembered.anything("speed")
    remembered.keep("speed", about, {"int8": 1.5})
    remembered.keep("speed", {**about, "threads": 1}, {"int8": 9.0})
    assert remembered.recall("speed", about) == {"int8": 1.5}
    (file,) = [f for f in (cache / "speed").iterdir() if '"threads": 2' in f.read_text()]
    for damaged in ("", "{", "[]", '{"found": {"int8": 3}}', file.read_text()[:-9]):
        file.write_text(damaged)
        assert remembered.recall("speed", about) is None
    remembered.keep("speed", about, {"int8": 2.0})
    assert remembered.recall("speed", about) == {"int8": 2.0}
    assert not list((cache / "speed").glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    remembered.keep("speed", {"a": 1}, {"b": 2})
    assert remembered.recall("speed", {"a": 1}) is None
    assert speed.linear_seconds([[8, 8, 1]])["int8"] == 1.0


def test_speeds_are_measured_once_for_a_processor_and_a_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(layers: speed.Layers) -> dict[str, float]:
        asked.append(layers)
        return {"float32": 1.0, "bfloat16": 1.0, "int8": 1.0}

    monkeypatch.setattr(speed, "_measured", measured)
    for _ in range(3):
        speed.linear_seconds([[8, 8, 1]])
    assert len(asked) == 1
    speed.linear_seconds([[8, 16, 1]])
    assert len(asked) == 2
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    speed.linear_seconds([[8, 8, 1]])
    assert len(asked) == 3
    for file in (cache / "speed").iterdir():
        file.write_text(file.read_text().replace("1.0", "null"))
    speed.linear_seconds([[8, 8, 1]])
    assert len(asked) == 4


def test_the_matrix_products_of_both_full_dtypes_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRD_CACHE", str(tmp_path))
    rates = {torch.float32: 1e11, torch.bfloat16: 2e11}
    asked = []

    def measured(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return rates[dtype]

    monkeypatch.setattr(hardware, "matmul_rate", measured)
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cpu"))
    for _ in range(2):
        hardware.fast_dtype.cache_clear()
        assert hardware.fast_dtype() == torch.bfloat16
    assert len(asked) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    rates[torch.bfloat16] = 1.1e11
    hardware.fast_dtype.cache_clear()
    assert hardware.fast_dtype() == torch.float32
    monkeypatch.undo()
    hardware.fast_dtype.cache_clear()


def test_layers_are_the_same_before_and_after_they_are_in_int8(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from brd.inference.int8_linear import quantise

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    layers = speed.layers_of(model)
    # Four layers: keys and values; queries and outputs; gates and ups; downs.
    assert layers == [[32, 16, 8], [32, 32, 8], [32, 64, 8], [64, 32, 4]]
    quantise(model)
    assert speed.layers_of(model) == layers


def test_real_products_take_time_in_every_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PATIENCE", 0.001)
    once, twice = (speed._measured([[64, 32, number]]) for number in (1, 100))
    for dtype in ("float32", "bfloat16", "int8"):
        assert 0 < once[dtype] < twice[dtype]


def test_auto_takes_int8_where_a_check_has_passed_and_it_is_faster(
    cache: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken() -> str:
        return recipe_teacher.settled(recipe).dtype

    assert taken() == "auto"
    put_on_record(recipe, behaviors=("ner",))
    assert taken() == "auto"
    put_on_record(recipe)
    assert taken() == "int8"
    put_on_record(recipe, passed=False, behaviors=("qra",))
    assert taken() == "auto"
    put_on_record(recipe)
    # Another prompt, another template, another machine and a dtype that is named are other matters.
    assert recipe_teacher.settled(changed(recipe, {"reading.exemplars": "instruct"})).dtype == "auto"
    assert recipe_teacher.settled(changed(recipe, {"teacher.chat_template": True})).dtype == "auto"
    assert recipe_teacher.settled(changed(recipe, {"teacher.dtype": "bfloat16"})).dtype == "bfloat16"
    assert recipe_teacher.settled(changed(recipe, {"reading.behaviors": ["qra"]})).dtype == "int8"
    with monkeypatch.context() as other:
        other.setattr(hardware, "fast_dtype", lambda: torch.bfloat16)
        assert taken() == "auto"
    # What the check took to read on this processor counts more than the layers alone.
    put_on_record(recipe, processor=hardware.processor(), rates={"float32": 9.0, "int8": 10.0})
    assert taken() == "auto"
    put_on_record(recipe, processor={"processor": "another"}, rates={"float32": 9.0, "int8": 10.0})
    assert taken() == "int8"
    monkeypatch.setattr(speed, "linear_seconds", lambda layers: {"float32": 1.0, "int8": 0.9})
    assert taken() == "auto"


def test_identity_beforehand_is_that_of_the_loaded_teacher(cache: Path, recipe: Recipe) -> None:
    for dtype in ("float32", "int8"):
        settings = recipe_teacher.settled(recipe)
        assert shared_prefix.load(settings).identity()["dtype"] == dtype
        assert LazyTeacher(settings).identity() == shared_prefix.load(settings).identity()
        put_on_record(recipe)
    embedded = changed(recipe, {"teacher.model": "embedded:smollm2-135m-instruct"})
    put_on_record(embedded)
    found = shared_prefix.known_identity(recipe_teacher.settled(embedded))
    assert found
    assert found["dtype"] == "int8"


def test_a_run_goes_on_in_the_dtype_in_which_it_began(cache: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "readings"
    folder.mkdir()
    said: list[str] = []
    teacher = shared_prefix.load(recipe_teacher.settled(recipe, folder))
    (folder / "teacher.json").write_text(json.dumps({"hash": teacher_hash(teacher), **teacher.identity()}))
    put_on_record(recipe)
    assert recipe_teacher.settled(recipe).dtype == "int8"
    settings = recipe_teacher.settled(recipe, folder, said.append)
    assert LazyTeacher(settings).identity() == teacher.identity()
    assert said == ["  the teacher goes on in float32, as this run began; a new run would be read in int8 here"]
    # Other weights or another kind of prompt begin anew.
    assert recipe_teacher.settled(changed(recipe, {"teacher.chat_template": True}), folder).dtype == "auto"
    other = json.loads((folder / "teacher.json").read_text()) | {"model": "sha256:another"}
    (folder / "teacher.json").write_text(json.dumps(other))
    assert recipe_teacher.settled(recipe, folder).dtype == "int8"
    (folder / "teacher.json").write_text("{")
    assert recipe_teacher.settled(recipe, folder).dtype == "int8"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_loss_of_verified_readings(pairs: list[tuple[bool, bool]]) -> None:
    full, int8 = zip(*pairs, strict=True)
    found = int8_check.verified_loss(full, int8)
    assert found.loss == pytest.approx((sum(full) - sum(int8)) / len(pairs))
    assert found.differ == sum(a != b for a, b in pairs)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.loss + 1e-9 <= found.high + 2e-9
    assert int8_check.verified_loss(int8, full).loss == pytest.approx(-found.loss)
    assert not found.passed or len(pairs) >= int8_check.LEAST


def test_the_losses_that_pass() -> None:
    n = 400
    lost = [False] * 3 + [True] * (n - 3)
    assert int8_check.verified_loss([True] * n, lost).passed
    lost = [False] * 4 + [True] * (n - 4)
    assert not int8_check.verified_loss([True] * n, lost).passed
    assert not int8_check.verified_loss([True] * 199, [True] * 199).passed
    # None of 400 differ: still up to 3 in 400 could.
    same = int8_check.verified_loss([True] * n, [True] * n)
    assert (same.loss, same.low, same.high) == (0, -0.0075, 0.0075)


def test_the_loss_of_f1_is_that_of_the_pooled_counts() -> None:
    full = np.array([[2.0, 2.0], [0.0, 3.0], [2.0, 4.0]] * 100)
    int8 = np.array([[2.0, 2.0], [0.0, 3.0], [0.0, 4.0]] * 100)
    found = int8_check.f1_loss(full, int8)
    assert found
    assert found.full == pytest.approx(4 / 9)
    assert found.int8 == pytest.approx(2 / 9)
    assert found.differ == 100
    assert found.low is not None
    assert found.high is not None
    assert 0.15 < found.low < found.loss < found.high < 0.3
    assert int8_check.f1_loss(np.zeros((3, 2)), np.zeros((3, 2))) is None


NAMES = "Mira N N B-PER\nOkafor N N I-PER\nsailed V V O\nto P P O\nBergen N N B-LOC\n. . . O\n"


def test_the_command_asks_once_and_the_run_then_has_its_readings(
    cache: Path, recipe_file: Callable[..., Path], brd_here: Brd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(int8_check, "LEAST", 10)
    recipe = recipe_file(teacher={"dtype": "auto", "batch_size": 4}, reading={"sentences": 12, "held_out_sentences": 6})
    (tmp_path / "names.txt").write_text("\n\n".join(f"Day{n} N N O\n{NAMES}" for n in range(12)))
    arguments = ("check-int8", recipe, "--out", "run", "-n", "40", "--entities", "names.txt")
    done = brd_here(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "int8.json").read_text())
    assert set(found["prompts"]) == {"ner", "qra"}
    assert found["passed"]
    assert found["prompts"]["ner"]["verified"]["n"] >= 18
    assert "passed: each loses less than 1 point" in done.stdout
    assert "ner, verified" in done.stdout
    assert "qra, verified" in done.stdout
    # A check leaves no mark of how the run began, and is not paid for twice.
    assert not (tmp_path / "run" / "readings" / "teacher.json").exists()

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(shared_prefix.SharedPrefix, "_flat", refuse)
        assert brd_here(*arguments).returncode == 0
        # The layers alone are said to be twice as fast here; too few readings for a rate of their own.
        assert recipe_teacher.settled(load(str(recipe))).dtype == "int8"
        done = brd_here("read", recipe, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "readings" / "teacher.json").read_text())["dtype"] == "int8"


def test_nothing_is_asked_where_int8_is_not_faster(
    cache: Path, recipe_file: Callable[..., Path], brd_here: Brd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(int8_check, "LEAST", 10)
    monkeypatch.setattr(speed, "_measured", lambda layers: {"float32": 1.0, "bfloat16": 9.0, "int8": 1.0})
    done = brd_here("check-int8", recipe_file(teacher={"dtype": "auto"}), "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "nothing was asked" in done.stdout
    assert "auto takes float32" in done.stdout
    assert not (tmp_path / "run" / "readings").exists()


def test_checks_that_could_say_nothing_are_refused(
    cache: Path, recipe_file: Callable[..., Path], brd_here: Brd, tmp_path: Path
) -> None:
    recipe = recipe_file(teacher={"dtype": "auto"})
    done = brd_here("check-int8", recipe)
    assert done.returncode == 2
    assert "different sentences; a check takes 200 or more" in done.stderr
    (tmp_path / "names.txt").write_text(NAMES)
    done = brd_here("check-int8", recipe, "--entities", "names.txt")
    assert done.returncode == 2
    assert "names.txt: 1 annotated sentences" in done.stderr
    done = brd_here("check-int8", recipe, "--set", "teacher.kind=llamacpp")
    assert done.returncode == 2
    assert "only shared_prefix" in done.stderr
