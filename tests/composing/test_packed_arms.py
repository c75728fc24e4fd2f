"""Arms of lessons that are packed whole: as many steps of as many rows, and as many tokens but for a few."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_documents import Scripted

from brd import recipe
from brd.composing.packing import TokenRows
from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.run import RunFolder

WHOLE = {"row_tokens": 64, "packing": "best_fit"}


@pytest.fixture
def road(recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pipeline]:
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: Scripted())

    def opened(**sections: Any) -> Pipeline:
        loaded = recipe.load(str(recipe_file(**{"reading": {"sentences": 20}, **sections})))
        return Pipeline(loaded, RunFolder(tmp_path / "run", loaded), Console())

    return opened


def meta(pipeline: Pipeline, arm: str) -> Any:
    return json.loads((pipeline.run.path / "composed" / arm / "meta.json").read_text())


def test_arms_of_whole_lessons_train_on_as_many_tokens(road: Callable[..., Pipeline]) -> None:
    arms = ["base", "further", "brd", "no_qra"]
    pipeline = road(composing=WHOLE, training={"attention": "document", "save_steps": 1000}, arms=arms)
    pipeline.up_to("train")
    reference = meta(pipeline, "brd")
    fill = reference["tokens"] / reference["rows"] / 64
    assert fill < 1
    trained = {arm: pipeline.result(f"train.{arm}") for arm in arms[1:]}
    assert len({found["steps"] for found in trained.values()}) == 1
    tokens = [found["trained_tokens"] for found in trained.values()]
    assert max(tokens) / min(tokens) < 1.02
    assert all(found["apart"] == "positions" for found in trained.values())
    # Padding is not counted, and lessons are lost nowhere.
    assert max(tokens) < trained["brd"]["steps"] * 2 * 64
    assert meta(pipeline, "no_qra")["passes"] == 1.0
    assert meta(pipeline, "further")["rows"] >= reference["rows"]
    assert meta(pipeline, "further")["tokens"] / meta(pipeline, "further")["rows"] / 64 == pytest.approx(fill, abs=0.01)


def test_arms_that_would_train_on_different_numbers_of_tokens_stop_before_the_first_is_trained(
    road: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = road(composing=WHOLE, arms=["further", "brd"])
    # As if the reference's rows were emptier than they are: further then holds less.
    monkeypatch.setattr("brd.steps.composing.reference_fill", lambda _: 0.8)
    pipeline.up_to("compose")
    monkeypatch.setattr("brd.training.trainer.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(BrdError, match=r"^composing.packing: .*'brd': \d+.*row_tokens.*composing.packing: stream$"):
        pipeline.train()


def test_the_files_of_a_recipe_that_packs_a_stream_rest_on_what_they_did(road: Callable[..., Pipeline]) -> None:
    plain, whole = road(), road(composing=WHOLE, training={"attention": "document"})
    said = road(composing={"packing": "stream"}, training={"attention": "row"})
    apart = road(training={"attention": "document"})
    assert said.compose_print("brd") == plain.compose_print("brd") == apart.compose_print("brd")
    assert said.train_print("brd") == plain.train_print("brd")
    assert len({pipeline.compose_print("brd") for pipeline in (plain, whole)}) == 2
    assert len({pipeline.train_print("brd") for pipeline in (plain, whole, apart)}) == 3


def test_a_seed_gives_the_same_files_again_and_another_seed_others(
    road: Callable[..., Pipeline], tmp_path: Path
) -> None:
    pipeline = road(composing=WHOLE, arms=["brd", "brd@1"])
    pipeline.up_to("compose")
    folder = pipeline.run.path / "composed"
    first = (folder / "brd" / "tokens.bin").read_bytes()
    assert first != (folder / "brd@1" / "tokens.bin").read_bytes()
    for file in (pipeline.run.path / "steps").glob("compose.*"):
        file.unlink()
    pipeline.compose()
    assert (folder / "brd" / "tokens.bin").read_bytes() == first
    # The same lessons, in another order.
    tokens = [sorted(TokenRows(folder / arm).filled.tolist()) for arm in ("brd", "brd@1")]
    assert sum(tokens[0]) == sum(tokens[1])


def test_packing_is_the_same_for_all_arms_of_a_run(recipe_file: Callable[..., Path]) -> None:
    variants = {"mine": {"arm": "brd", "set": {"composing.packing": "best_fit"}}}
    with pytest.raises(BrdError, match=r"composing.packing is the same for all arms of a run"):
        recipe.load(str(recipe_file(variants=variants)))
