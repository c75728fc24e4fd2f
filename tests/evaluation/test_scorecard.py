"""What a file of scores rests on, and scores that are taken over from a cache."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from brd import recipe
from brd.evaluation import item_table
from brd.evaluation.evaluate import Examinee, recipe_requests, score_tasks
from brd.evaluation.items import Item
from brd.evaluation.scorecard import Request, request_figures, requests, score_request
from brd.evaluation.scoring import ItemScores, candidate_score

TASK: dict[str, Any] = {
    "name": "birds",
    "version": 1,
    "about": "Does a sentence speak of a bird?",
    "source": {"file": "birds.jsonl"},
    "templates": {"question": {"prompt": "{{ text }} Bird?", "candidates": [" no", " yes"], "unconditional": "Bird?"}},
    "label": "label",
    "labels": {0: 0, 1: 1},
    "few_shot": {"source": {"file": "more.jsonl"}},
    "citation": "our own",
    "licence": "CC0",
}


class Counting:
    """A scorer of nothing but lengths, which counts the items it is given."""

    def __init__(self) -> None:
        self.items = 0

    def __call__(self) -> Any:
        return self

    def score(self, asked: Iterable[Item], progress: Callable[[int], None] | None = None) -> Iterator[ItemScores]:
        for item in asked:
            self.items += 1
            scores = tuple(candidate_score(text, -float(len(text)), 1) for text in item.candidates)
            yield ItemScores(item.id, item.credits, scores, 0)


def never() -> Any:
    raise AssertionError("nothing should be scored")


def write(folder: Path, count: int = 20, change: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"text": f"Line {n}{change}.", "label": n % 2}) for n in range(count)]
    (folder / "birds.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "more.jsonl").write_text('{"text": "A gull.", "label": 1}', encoding="utf-8")
    (folder / "birds.yaml").write_text(yaml.safe_dump(TASK), encoding="utf-8")
    return folder / "birds.yaml"


def ask(path: Path, **how: Any) -> Request:
    (request,) = requests([str(path)], **how)
    return request


# --- What scores rest on


def test_the_fingerprint_follows_content_and_no_place(tmp_path: Path) -> None:
    here = ask(write(tmp_path / "here"), shots=1).fingerprint("model")
    assert ask(write(tmp_path / "there" / "deep"), shots=1).fingerprint("model") == here
    assert ask(write(tmp_path / "there", change="!"), shots=1).fingerprint("model") != here
    (tmp_path / "here" / "more.jsonl").write_text('{"text": "A tern.", "label": 1}', encoding="utf-8")
    assert ask(tmp_path / "here" / "birds.yaml", shots=1).fingerprint("model") != here


def test_the_fingerprint_of_a_bigbench_file_follows_content_and_no_place(tmp_path: Path) -> None:
    found = []
    for folder, answer in (("here", "2"), ("there", "2"), ("else", "3")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "sums.json"
        path.write_text(json.dumps({"examples": [{"input": "1+1", "target_scores": {answer: 1, "5": 0}}]}))
        found.append(ask(path).fingerprint("model"))
    assert found[0] == found[1] != found[2]


def test_the_fingerprint_knows_halves(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert len({ask(path, half=half).fingerprint("model") for half in (None, "a", "b")}) == 3


def test_figures_tell_the_half_and_halves_share_no_item(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = {}
    for half in ("a", "b"):
        request = ask(path, half=half)
        scored = score_request(Counting(), request, tmp_path / half, "model")
        assert request_figures(scored, request)["half"] == half
        assert item_table.about(scored)["half"] == half
        found[half] = {scores.id for scores in item_table.read(scored)}
    assert found["a"] | found["b"] == {f"birds/{n}" for n in range(20)}
    assert not found["a"] & found["b"]
    whole = ask(path)
    assert request_figures(score_request(Counting(), whole, tmp_path / "whole", "model"), whole)["half"] is None


# --- The cache


@pytest.mark.parametrize("place", [".", "base"])
def test_cached_scores_are_copied_and_nothing_is_scored(tmp_path: Path, place: str) -> None:
    request = ask(write(tmp_path), half="a", limit=5)
    known = score_request(Counting(), request, tmp_path / "cache" / place, "model")
    path = score_request(never, request, tmp_path / "run" / "deep", "model", cache=tmp_path / "cache")
    assert path == tmp_path / "run" / "deep" / request.file
    assert path.read_bytes() == known.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [request.file]
    # Another metric is read off what was cached.
    other = ask(tmp_path / "birds.yaml", half="a", limit=5, metric="sum")
    again = score_request(never, other, tmp_path / "other", "model", cache=tmp_path / "cache")
    assert item_table.about(again)["metric"] == "sum"
    assert known.read_bytes() == path.read_bytes()


def test_scores_of_another_fingerprint_are_not_taken(tmp_path: Path) -> None:
    request = ask(write(tmp_path))
    score_request(Counting(), request, tmp_path / "cache", "another model")
    score_request(Counting(), ask(tmp_path / "birds.yaml", half="b"), tmp_path / "cache" / "b", "model")
    scorer = Counting()
    score_request(scorer, request, tmp_path / "run", "model", cache=tmp_path / "cache")
    assert scorer.items > 20
    # What the run has itself needs no cache.
    score_request(never, request, tmp_path / "run", "model", cache=tmp_path / "cache")


@pytest.mark.parametrize("damage", ["empty", "torn", "inside", "metadata"])
def test_damaged_files_in_the_cache_are_passed_over(tmp_path: Path, damage: str) -> None:
    request = ask(write(tmp_path))
    known = score_request(Counting(), request, tmp_path / "cache" / "a", "model")
    whole = known.read_bytes()
    if damage == "metadata":
        pq.write_table(pq.read_table(known).replace_schema_metadata({"brd": '{"fingerprint'}), known)
    elif damage == "inside":
        known.write_bytes(whole[:4] + b"\xff" * 400 + whole[404:])
    else:
        known.write_bytes(b"" if damage == "empty" else whole[: len(whole) // 2])
    scorer = Counting()
    score_request(scorer, request, tmp_path / "run", "model", cache=tmp_path / "cache")
    assert scorer.items > 20
    # The next folder's file is found nevertheless.
    (tmp_path / "cache" / "b").mkdir()
    shutil.copy(tmp_path / "run" / request.file, tmp_path / "cache" / "b")
    score_request(never, request, tmp_path / "again", "model", cache=tmp_path / "cache")


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    scorer = Counting()
    score_request(scorer, ask(write(tmp_path)), tmp_path / "run", "model", cache=tmp_path / "nowhere")
    assert scorer.items > 20
    assert not (tmp_path / "nowhere").exists()


def test_the_recipes_half_and_cache_reach_the_scores(tmp_path: Path) -> None:
    path = write(tmp_path)
    chosen = recipe.changed(
        recipe.load("demo"),
        {"evaluation.tasks": [str(path)], "evaluation.half": "a", "evaluation.cache": str(tmp_path / "cache")},
    )
    (request,) = recipe_requests(chosen)
    assert request.half == "a"
    score_request(Counting(), request, tmp_path / "cache" / "brd", "model")
    # Not even the model is loaded.
    found = score_tasks(chosen, Examinee("model", never), tmp_path / "run")
    assert found["tasks"]["birds"]["half"] == "a"
