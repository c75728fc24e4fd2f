"""The tables of an experiment's result, as Markdown, from a run whose report step has been run.

    python benchmarks/evidence.py RUN [HALF]

Prints the arms' macro-averages, the contrasts over seeds with the mixed model's p, the primary contrast by kind of
template (with and without the words `Question:` or `Answer:`, which readings use too), how many tasks came nearer to
the teacher, reading skill and F1 against gold, and the share of the commonest predicted label.
"""

import sys
from pathlib import Path
from typing import Any

from brd import recipe
from brd.evaluation.contrast import contrast
from brd.evaluation.evaluate import recipe_requests
from brd.experiment import seeds
from brd.run import read_json

ENDPOINTS = {"accuracy": "accuracy", "auc": "AUC", "calibrated_accuracy": "calibrated"}


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def share(value: Any, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def points(row: Any) -> str:
    if row is None:
        return "–"
    return f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def p(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def arms(summary: dict[str, Any]) -> None:
    names = {**summary["arms"], **({"teacher": summary["teacher"]} if "teacher" in summary else {})}
    rows = [
        [name, share(a["macro_average"]), share(a.get("macro_auc")), share(a.get("macro_calibrated_accuracy"))]
        for name, a in names.items()
    ]
    table(["arm", "accuracy", "AUC", "calibrated"], rows)


def contrasts(summary: dict[str, Any]) -> None:
    rows = []
    for found in summary["contrasts"]:
        for label, part in (
            ("", found),
            (" without " + ", ".join(found.get("without", {}).get("left_out", [])), found.get("without")),
        ):
            for key, name in ENDPOINTS.items():
                if not part or not part["endpoints"].get(key):
                    continue
                row = part["endpoints"][key]
                effect = (part.get("seed_effect") or {}).get(key)
                rows.append(
                    [
                        found["name"] + label,
                        name,
                        points(effect or row),
                        p(effect["p"]) if effect else "–",
                        p(row["p"]),
                        p(row["items_only"]["p"]),
                        ", ".join(f"{100 * gap:+.1f}" for gap in row["by_seed"]),
                    ]
                )
    table(["contrast", "of", "points (95 %)", "p, mixed model", "p, bootstrap", "p, items only", "by seed"], rows)


def templates(run: Path, loaded: recipe.Recipe, folder: Path) -> None:
    """The primary contrast by kind of template."""
    by_name = seeds(loaded)
    kinds: dict[str, set[str]] = {"with Question: or Answer:": set(), "without": set()}
    for request in recipe_requests(loaded):
        template = request.task.templates[request.template]
        prompt = next(request.items()).context if template.verbatim else template.prompt
        worded = "Question:" in prompt or "Answer:" in prompt or "Q:" in prompt
        kinds["with Question: or Answer:" if worded else "without"].add(request.file.removesuffix(".parquet"))
    rows = []
    for kind, only in kinds.items():
        pair = [[folder / arm for arm in by_name[name]] for name in ("further", "brd")]
        found = contrast(*pair, only=only)
        for key, name in ENDPOINTS.items():
            if row := found["endpoints"].get(key):
                effect = (found.get("seed_effect") or {}).get(key)
                rows.append([kind, str(len(only)), name, points(effect or row), p((effect or row)["p"])])
    table(["templates", "n", "of", "brd - further (95 %)", "p"], rows)


def distances(summary: dict[str, Any]) -> None:
    """Tasks on which an arm's distribution is nearer to the teacher's than further's."""
    found = summary.get("divergences") or {}
    if "further" not in found:
        return
    paper = ("sst2", "rte", "cb", "boolq", "piqa", "xnli", "pawsx")
    rows = []
    for arm in found:
        if arm == "further":
            continue
        cells = []
        for fit in ("raw", "temperature", "prior"):
            nearer = known = 0
            for task in paper:
                means = [
                    [
                        row[fit]["cross_entropy"]
                        for name, row in found[side].items()
                        if name.split(".")[0] == task and fit in row
                    ]
                    for side in (arm, "further")
                ]
                if all(means):
                    known += 1
                    nearer += sum(means[0]) / len(means[0]) < sum(means[1]) / len(means[1])
            cells.append(f"{nearer} of {known}")
        rows.append([arm, *cells])
    table(["nearer to the teacher than further", "raw", "temperature fitted", "label bias fitted"], rows)


def reading(summary: dict[str, Any]) -> None:
    rows = []
    for name, arm in summary["arms"].items():
        for way, key in (("alone", "reading"), ("prompted", "reading_prompted")):
            if not (found := arm.get(key)):
                continue
            gold = (arm.get("gold") or {}).get("plain" if way == "alone" else "prompted") or {}
            rows.append(
                [
                    f"{name}, {way}",
                    "–" if found["loss"] is None else f"{found['loss']:.3f}",
                    "–" if found["original_loss"] is None else f"{found['original_loss']:.3f}",
                    share(found["well_formed"]),
                    share(found["verified"]),
                    share(found.get("entity_f1")),
                    share(found.get("answer_f1")),
                    share((gold.get("entities") or {}).get("f1")),
                    share((gold.get("answers") or {}).get("f1")),
                ]
            )
    if teacher := (summary.get("teacher") or {}).get("gold"):
        gold = teacher["prompted"]
        rows.append(["teacher, prompted", *["–"] * 6, share(gold["entities"]["f1"]), share(gold["answers"]["f1"])])
    head = ["arm", "reading loss", "original loss", "well formed", "verified", "entity F1", "answer F1"]
    table([*head, "gold entities", "gold answers"], rows)


def labels(summary: dict[str, Any]) -> None:
    names = {**summary["arms"], **({"teacher": summary["teacher"]} if "teacher" in summary else {})}
    first = next(iter(summary["arms"].values()))["tasks"]
    rows = []
    for task in first:
        cells = []
        for arm in names.values():
            found = arm["tasks"].get(task) or {}
            cells.append(
                f"{share(found.get('accuracy'), 0)} / {share(found.get('auc'), 0)} / {share(found.get('preferred'), 0)}"
            )
        rows.append([task, share(first[task]["majority"], 0), *cells])
    print("Accuracy / AUC / share of the label predicted most.\n")
    table(["task", "commonest", *names], rows)


def main(run: Path, half: str) -> None:
    loaded = recipe.load(str(run / "recipe.yaml"))
    summary = read_json(run / "summary.json")
    arms(summary)
    if summary["contrasts"]:
        contrasts(summary)
        templates(run, loaded, run / f"evaluation_{half}")
    distances(summary)
    reading(summary)
    labels(summary)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "a")
