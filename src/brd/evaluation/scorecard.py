"""Scoring a model on tasks into a folder, task by task, and the figures that come of it.

A folder holds one Parquet file for a task and template; one that is there with the right fingerprint is not scored
again, so an interrupted call goes on from where it was. Both ``brd score`` and the evaluation step of a run use it.
"""

import hashlib
import json
import os
import shutil
import statistics as plain
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from brd.errors import BrdError
from brd.evaluation import item_table
from brd.evaluation.items import Half, Item, content_free, items
from brd.evaluation.records import Source, stamp
from brd.evaluation.scoring import ItemScores, Scorer, candidate_score
from brd.evaluation.statistics import Floats, figures, macro_average
from brd.evaluation.tasks import Metric, Task, load_task

Progress = Callable[[str, int], None]
"""(what is scored, candidates scored so far)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One task under one template; ``metric`` and ``shots`` are already the task's own where nobody chose."""

    task: Task
    template: str
    shots: int
    metric: Metric
    limit: int | None = None
    half: Half | None = None

    @property
    def name(self) -> str:
        """What the task is called in tables: the template is named where it is not the default one."""
        return self.task.name if self.template == self.task.template() else f"{self.task.name}/{self.template}"

    @property
    def file(self) -> str:
        return f"{self.task.name}.{self.template}.parquet"

    def items(self) -> Iterator[Item]:
        return items(self.task, self.template, self.limit, self.shots, self.metric == "pmi", self.half)

    def fingerprint(self, model: str) -> str:
        """What a file of scores rests on: the model, the data, how they are asked. Metrics are read off later.

        Local data count by their content, wherever they lie, so that scores can be taken to another machine.
        """
        about = self.task.model_dump(exclude={"about", "citation", "licence", "metric", "group", "templates"})
        sources = [self.task.source, *([self.task.few_shot.source] if self.task.few_shot.source and self.shots else [])]
        about["source"] = _placeless(self.task.source)
        about["few_shot"]["source"] = self.task.few_shot.source and _placeless(self.task.few_shot.source)
        parts = [
            about,
            self.task.templates[self.template].model_dump(),
            [stamp(source) or self._digest() for source in sources],
            [self.shots, self.limit, self.metric == "pmi", model, *([self.half] if self.half else [])],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _digest(self) -> str:
        """The items themselves, for sources that do not say which version they are."""
        digest = hashlib.sha256()
        for item in self.items():
            digest.update(repr(item).encode())
        return digest.hexdigest()


def _placeless(source: Source) -> dict[str, Any]:
    """A source without the paths in it: of a local file only the ending, which says how it is read."""
    found = source.model_dump()
    for key in ("file", "bigbench", "lm_eval"):
        ending = Path(found[key] or "").suffix
        if key != "lm_eval" or ending in (".yaml", ".yml"):
            found[key] = ending or None
    return found


def requests(
    names: Sequence[str],
    templates: str | None = None,
    shots: int | None = None,
    metric: Metric | None = None,
    limit: int | None = None,
    half: Half | None = None,
) -> list[Request]:
    """The tasks by name or file; ``templates`` is ``all`` or one template's name, the default one unless said."""
    found = []
    for name in names:
        task = load_task(name)
        chosen = list(task.templates) if templates == "all" else [task.template(templates)]
        count = task.few_shot.count if shots is None else shots
        found += [Request(task, template, count, metric or task.metric, limit, half) for template in chosen]
    if len({(r.task.name, r.template) for r in found}) < len(found):
        raise BrdError(f"a task is named twice: {', '.join(names)}")
    return found


def score_request(
    scorer: Callable[[], Scorer],
    request: Request,
    folder: Path,
    model: str,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Path:
    """The file of scores of one request, scored now unless it is there; ``model`` identifies weights and dtype.

    ``scorer`` is only called when there is something to score. ``cache`` is a folder with files of scores, or with
    folders of them, where the same scores may lie already; they are copied, and nothing is written there.
    """
    path = folder / request.file
    wanted = request.fingerprint(model)
    known = item_table.about(path)
    if known.get("fingerprint") != wanted and cache is not None and (found := cached(cache, request.file, wanted)):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        shutil.copyfile(found, scratch)
        os.replace(scratch, path)
        known = item_table.about(path)
    if known.get("fingerprint") == wanted:
        if known.get("metric") == request.metric and known.get("group") == request.task.group:
            return path
        # Another metric is read off the same log-probabilities.
        known["group"] = request.task.group
        again = list(zip(request.items(), item_table.read(path), strict=True))
        item_table.write(path, again, request.template, request.metric, known)
        return path
    done = 0

    def tell(candidates: int) -> None:
        nonlocal done
        done += candidates
        if progress:
            progress(request.name, done)

    asked, kept = tee(request.items())
    blank = content_free(request.task, request.template, request.shots)
    about = {"fingerprint": wanted, "task": request.task.name, "version": request.task.version, "shots": request.shots}
    about |= {"half": request.half} if request.half else {}
    about |= {"group": request.task.group} if request.task.group else {}
    about["content_free"] = [_raw(scores) for scores in scorer().score(blank)]
    item_table.write(path, zip(kept, scorer().score(asked, tell), strict=True), request.template, request.metric, about)
    return path


def cached(cache: Path, name: str, fingerprint: str) -> Path | None:
    """The readable file of this name and fingerprint in ``cache`` or a folder directly in it; None where there is no
    such file, or no such folder. What is damaged is passed over."""
    folders = [cache, *sorted(path for path in cache.iterdir() if path.is_dir())] if cache.is_dir() else []
    for folder in folders:
        path = folder / name
        try:
            # All of it is read: a damaged file may still have its beginning and its end.
            if item_table.about(path).get("fingerprint") == fingerprint and sum(1 for _ in item_table.read(path)):
                return path
        # What stands in a damaged file may be anything.
        except (BrdError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return None


def _raw(scores: ItemScores) -> list[tuple[str, float, int]]:
    return [(candidate.text, candidate.logprob, candidate.tokens) for candidate in scores.candidates]


def prior(path: Path, metric: Metric) -> Floats | None:
    """The candidates' probabilities for a content-free input, averaged over such inputs; None where not asked."""
    found = item_table.about(path).get("content_free")
    # Divided by itself, a preference is gone already.
    if not found or metric == "pmi":
        return None
    tables = []
    for row in found:
        values = [candidate_score(text, logprob, tokens).value(metric) for text, logprob, tokens in row]
        weights = np.exp(np.array(values) - max(values))
        tables.append(weights / weights.sum())
    mean: Floats = np.mean(tables, axis=0)
    return mean


def request_figures(path: Path, request: Request) -> dict[str, Any]:
    """All figures of one file; see ``statistics.TaskFigures``."""
    found = item_table.outcomes(path, request.metric)
    given = prior(path, request.metric) if found.labels is not None else None
    ties = item_table.near_ties(found)
    return {
        "task": request.task.name,
        "group": request.task.group,
        "template": request.template,
        "version": request.task.version,
        "shots": request.shots,
        "metric": request.metric,
        "half": request.half,
        **figures(found, given).as_dict(),
        "truncated": item_table.truncated(path),
        "near_ties": len(ties),
        "near_tie_items": ties[:20],
    }


def overall(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The spread over templates of each task, and macro-averages over tasks: each task's templates are averaged first,
    then the tasks of a group."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for figure in found:
        by_task.setdefault(figure["task"], []).append(figure)
    spread = {}
    for name, rows in by_task.items():
        accuracies = [row["accuracy"] for row in rows]
        if len(rows) > 1:
            spread[name] = {
                "templates": len(rows),
                "mean": plain.fmean(accuracies),
                "sd": plain.stdev(accuracies),
                "low": min(accuracies),
                "high": max(accuracies),
            }
    out: dict[str, Any] = {"spread": spread}
    group_of = {figure["task"]: figure.get("group") or figure["task"] for figure in found}
    for key in ("accuracy", "auc", "calibrated_accuracy"):
        means = [_mean([row[key] for row in rows]) for rows in by_task.values()]
        # Where an item's candidates are its own there is nothing to calibrate: the accuracy counts as it is.
        if key == "calibrated_accuracy":
            plainly = [_mean([row["accuracy"] for row in rows]) for rows in by_task.values()]
            means = [a if c is None else c for c, a in zip(means, plainly, strict=True)]
        by_group: dict[str, list[float | None]] = {}
        for name, value in zip(by_task, means, strict=True):
            by_group.setdefault(group_of[name], []).append(value)
        known = [mean for values in by_group.values() if (mean := _mean(values)) is not None]
        out["macro_average" if key == "accuracy" else f"macro_{key}"] = macro_average(known) if known else None
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return plain.fmean(known) if known else None
