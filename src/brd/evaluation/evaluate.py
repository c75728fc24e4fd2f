"""The evaluation step: one arm's tasks and reading skill, as JSON and as one Parquet row an item."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from brd.evaluation.scoring import ItemScores, score
from brd.evaluation.statistics import macro_average, summarize
from brd.evaluation.tasks import items, load_task
from brd.reading.store import write_table
from brd.recipe import Recipe


def score_tasks(
    recipe: Recipe, model: Any, tokenizer: Any, progress: Callable[[str, int, int], None] | None = None
) -> tuple[dict[str, Any], dict[str, list[ItemScores]]]:
    """Figures and item scores of every task of the recipe, and their macro-average (paper: testing, blind)."""
    figures: dict[str, Any] = {}
    scores: dict[str, list[ItemScores]] = {}
    summaries = []
    for name in recipe.evaluation.tasks:
        task = load_task(name)
        found = list(items(task, limit=recipe.evaluation.limit))

        def tell(done: int, of: int, task_name: str = task.name) -> None:
            if progress:
                progress(task_name, done, of)

        scores[task.name] = score(model, tokenizer, found, batch_tokens=recipe.evaluation.batch_tokens, progress=tell)
        summary = summarize(task.name, scores[task.name])
        summaries.append(summary)
        figures[task.name] = {
            "accuracy": summary.accuracy,
            "stderr": summary.standard_error,
            "n": summary.n,
            "majority": summary.majority,
            "chance": sum(1 / len(item.candidates) for item in found) / len(found),
            "predicted": _labels(found, summary.predicted),
            "gold": _labels(found, summary.gold),
            "truncated": summary.truncated,
            "metric": summary.metric,
        }
    return {"tasks": figures, "macro_average": macro_average(summaries) if summaries else None}, scores


def _labels(found: list[Any], counts: tuple[int, ...]) -> dict[str, int]:
    """Counts by answer where all items share their candidates, else by position."""
    shared = {item.candidates for item in found}
    names = [c.strip() for c in shared.pop()] if len(shared) == 1 else [f"answer {n + 1}" for n in range(len(counts))]
    return dict(zip(names, counts, strict=True))


def write_items(scores: dict[str, list[ItemScores]], path: Path) -> None:
    """One row an item: what every candidate scored, the prediction and the gold answer."""
    rows: list[dict[str, Any]] = [
        {
            "task": task,
            "item": item.id,
            "candidates": [c.text for c in item.candidates],
            "logprobs": [c.logprob for c in item.candidates],
            "tokens": [c.tokens for c in item.candidates],
            "prediction": item.prediction(),
            "gold": item.gold,
            "truncated": item.truncated,
        }
        for task, found in scores.items()
        for item in found
    ]
    schema = pa.schema(
        [
            ("task", pa.string()),
            ("item", pa.string()),
            ("candidates", pa.list_(pa.string())),
            ("logprobs", pa.list_(pa.float64())),
            ("tokens", pa.list_(pa.int32())),
            ("prediction", pa.int32()),
            ("gold", pa.int32()),
            ("truncated", pa.int32()),
        ]
    )
    write_table(pa.Table.from_pylist(rows, schema=schema), path)


def rounded(value: Any) -> Any:
    """Figures for JSON: six digits, null for what is no number."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value
