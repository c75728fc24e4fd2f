"""``brd audit``: what was read in a run, as figures (audit.json) and as tables for a terminal."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from brd.console import Console
from brd.errors import BrdError
from brd.evaluation.tables import grid, interval, percent
from brd.reading.behavior import behaviors_of, one_line
from brd.recipe import Recipe, load
from brd.run import read_json, write_json

# Texts from the corpus and from models are cut to so many characters in a terminal.
WIDTH = 110
# Rows of a table of labels that a terminal shows; audit.json has all.
ROWS = 12


class Annotated(NamedTuple):
    """Sentences that people have read: the file's name, and ``brd.evaluation.gold``'s records."""

    file: str
    items: list[Any]


def run_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder in which reading has begun. Raises BrdError for any other folder."""
    if not folder.is_dir():
        meant = Path("runs") / folder
        hint = f"did you mean {meant}?" if meant.is_dir() else "it should be the folder of a run, such as runs/demo"
        raise BrdError(f"{folder}: no such folder; {hint}")
    needed = ("recipe.yaml", "readings/paragraphs.parquet", "readings/teacher.json")
    if not all((folder / name).is_file() for name in needed):
        raise BrdError(f"{folder}: nothing was read here yet; run `brd read RECIPE --out {folder}` first")
    return load(str(folder / "recipe.yaml"))


def audit(recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """Look through the readings of a run and write audit.json; returns what it holds.

    That is ``brd.reading.audit.audit``'s figures, ``run``, ``finished`` (whether reading has come to its end),
    ``known_from`` (how many answers were not asked here but taken from where), and ``gold``: what ``against_gold`` told
    of the same teacher and prompts. Raises BrdError where the folder holds no reading that the recipe wants.
    """
    from brd.reading import audit as reading
    from brd.reading.known import taken_from

    found = reading.audit(recipe, folder / "readings", lambda done: console.progress("readings", done, None))
    if not any(figures["asked"] for figures in found["behaviors"].values()):
        raise BrdError(
            f"{folder}: no reading by its recipe's teacher, prompts and text here ({found['other_readings']} by "
            f"others); run `brd read RECIPE --out {folder}` first"
        )
    before = read_json(folder / "audit.json")
    same = isinstance(before, dict) and all(before.get(key) == found[key] for key in ("teacher", "prompts"))
    finished = (folder / "steps" / "read.json").exists()
    about = {"run": recipe.name, "finished": finished, "known_from": taken_from(folder / "readings")}
    found = {**about, **found, "gold": before.get("gold", {}) if same else {}}
    write_json(folder / "audit.json", found)
    return found


def annotations(recipe: Recipe, entities: Path | None, answers: Path | None, limit: int) -> dict[str, Annotated]:
    """At most ``limit`` annotated sentences and questions of each file. Raises BrdError for a file that cannot be
    read, or whose behavior the run does not read."""
    if entities is None and answers is None:
        return {}
    from brd.evaluation import gold

    behaviors = recipe.reading.names
    for path, option, name in ((entities, "--entities", "ner"), (answers, "--answers", "qra")):
        if path is not None and name not in behaviors:
            raise BrdError(f"{option}: this run does not read with {name} (reading.behaviors: {', '.join(behaviors)})")
    found = {}
    if entities is not None:
        found["entities"] = Annotated(entities.name, gold.load_entities(entities, limit))
    if answers is not None:
        found["answers"] = Annotated(answers.name, gold.load_answers(answers, limit))
    return found


def against_gold(recipe: Recipe, folder: Path, asked: Mapping[str, Annotated]) -> None:
    """Ask the run's teacher for annotated sentences and write how well it does into audit.json, which is there."""
    from brd.evaluation import gold
    from brd.evaluation.evaluate import rounded
    from brd.reading.reader import teacher_hash
    from brd.recipe_teacher import settled
    from brd.teachers import LazyTeacher

    behaviors = behaviors_of(recipe.reading)
    found: dict[str, Any] = read_json(folder / "audit.json")
    how: dict[str, Any] = {"separator": recipe.composing.separator, "prompted": True}
    teacher = LazyTeacher(settled(recipe, folder / "readings"))
    try:
        for part, (file, items) in asked.items():
            if part == "entities":
                drop = recipe.reading.drop_bad_entities
                figures = gold.entity_figures(teacher, behaviors["ner"], items, drop_bad_parts=drop, **how)
            else:
                figures = gold.answer_figures(teacher, behaviors["qra"], items, **how)
            same = teacher_hash(teacher) == found["teacher"]
            # Of several languages the annotations are asked in the first one.
            spoken = {"asked_in": behaviors.languages[0]} if len(behaviors.languages) > 1 else {}
            found["gold"][part] = rounded({"file": file, "same_teacher": same, **spoken, **figures})
            write_json(folder / "audit.json", found)
    finally:
        teacher.close()


def tables(found: Mapping[str, Any]) -> str:
    """The audit for a terminal. Text of corpus and models comes without control characters."""
    places = found["sentences"]
    lines = [
        f"{shown(found['run'])}: {places['distinct']} different sentences at {places['places']} places of the corpus, "
        f"language {shown(found['language'])} (as the recipe says), scripts {_listed(places['scripts'].items())}"
    ]
    if not found["finished"]:
        lines.append("reading has not come to its end: these are the answers so far")
    if taken := found.get("known_from"):
        listed = ", ".join(f"{n:,} from {shown(place)}" for place, n in taken.items())
        lines.append(f"not asked here, since known: {listed}")
    if places["repeated"]:
        texts = _listed((t["text"], t["n"]) for t in places["commonest"][:3])
        lines.append(f"{places['repeated']} places hold a sentence that stands elsewhere too: {texts}")
    if found["other_readings"]:
        lines.append(f"{found['other_readings']} readings in the store are of another teacher, prompt or text")
    for name, figures in found["behaviors"].items():
        lines += ["", *_behavior(shown(name), figures)]
    if found["gold"]:
        lines += ["", _gold(found["gold"])]
    return "\n".join(lines)


def shown(text: str, most: int = WIDTH) -> str:
    """A text that a terminal can only print: on one line, cut, no escape codes, nothing that turns its direction."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in one_line(text))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _listed(counted: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{shown(text, 60)} ({n})" for text, n in counted) or "-"


def _behavior(name: str, found: Mapping[str, Any]) -> list[str]:
    columns = {"well formed": "well_formed", "verified": "verified", "grounded": "grounded", "empty": "empty"}
    rows = [[name, "asked", *(f"{label} %" for label in columns), "parts", "verified %"]]
    by_length = [(f"  {row['words']} words", row) for row in found["by_length"] if row["asked"]]
    by_language = [(f"  in {shown(row['language'])}", row) for row in found.get("by_language", ()) if row["asked"]]
    for label, counts in [("all sentences", found), *by_language, *by_length]:
        shares = [_share(counts[key], counts["asked"]) for key in columns.values()]
        rows.append([label, str(counts["asked"]), *shares, str(counts["parts"]), _parts(counts)])
    lines = [grid(rows)]
    if found["not_asked"]:
        lines.append(f"{found['not_asked']} sentences have no answer yet")
    lines += _reasons("why readings failed", found["reasons"], found["asked"])
    lines += _reasons("why parts of verified readings were dropped", found["dropped"], found["asked"])
    lines += _reasons("answers in a script of neither sentence nor prompt", found["other_scripts"], found["asked"])
    for about, labels in found["labels"].items():
        lines += _labels(shown(about), labels)
    if found["numbers"]:
        rows = [["", "n", "mean", "median", "9 of 10 at most", "most"]]
        for about, row in found["numbers"].items():
            rows.append([shown(about), str(row["n"]), f"{row['mean']:.1f}", *(str(row[k]) for k in _SPREAD)])
        lines += ["", grid(rows)]
    repeats = found["repeats"]
    lines += [
        "",
        f"repeats: of {repeats['n']} readings that hold something, {_about(repeats)}{repeats['shared']} are word for "
        f"word as another sentence's" + (f": {_commonest(repeats, 3)}" if repeats["commonest"] else ""),
    ]
    return lines


_SPREAD = ("median", "p90", "most")


def _share(n: int, total: int) -> str:
    return percent(n / total if total else None)


def _parts(counts: Mapping[str, Any]) -> str:
    return _share(counts["parts_verified"], counts["parts"])


def _about(figures: Mapping[str, Any]) -> str:
    return "" if figures["exact"] else "about "


def _commonest(figures: Mapping[str, Any], most: int) -> str:
    return _listed((text["text"], text["n"]) for text in figures["commonest"][:most])


def _reasons(title: str, reasons: list[Mapping[str, Any]], asked: int) -> list[str]:
    lines = ["", f"{title}, % of those asked:"] if reasons else []
    for row in reasons[:ROWS]:
        lines.append(f"  {row['n']:>6}  {_share(row['n'], asked):>5}  {shown(row['reason'])}")
        for example in row["examples"]:
            lines += [f"{'':17}{shown(example['sentence'])}", f"{'':17}-> {shown(example['raw'])}"]
    return lines


def _labels(about: str, labels: Mapping[str, Any]) -> list[str]:
    named = "distinct" in labels
    rows = [[about, "n", "%", *(["different", "commonest"] if named else [])]]
    for row in labels["rows"][:ROWS]:
        cells = [shown(row["label"], 40), str(row["n"]), _share(row["n"], labels["n"])]
        rows.append([*cells, *_names(row)] if named else cells)
    if named:
        rows.append(["all", str(labels["n"]), "", *_names(labels, 0)])
    # The last column is text.
    widths = [max(len(row[i]) for row in rows) for i in range(3 + named)]
    lines = [""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1 : 3 + named], widths[1:], strict=True))]
        lines.append("  ".join([*cells, *row[3 + named :]]).rstrip())
    if named:
        lines.append(f"{_about(labels)}{labels['shared']} of these {labels['n']} stand with several sentences")
    return lines


def _names(row: Mapping[str, Any], most: int = 3) -> list[str]:
    if "distinct" not in row:
        return ["-", ""]
    return [f"{_about(row)}{row['distinct']}", _commonest(row, most) if most else ""]


def _gold(gold: Mapping[str, Any]) -> str:
    rows = [["against annotations, %", "n", "F1", "precision", "recall", "names alone", "exact"]]
    for part, found in gold.items():
        cells = [interval(found["f1"], found["low"], found["high"])]
        cells += [percent(found.get(key)) for key in ("precision", "recall", "f1_untyped", "exact_match")]
        asked_in = f", asked in {shown(found['asked_in'])}" if "asked_in" in found else ""
        rows.append([f"{part} ({shown(found['file'])}{asked_in})", str(found["n"]), *cells])
    lines = [grid(rows)]
    if not all(found["same_teacher"] for found in gold.values()):
        lines.append(
            "taken with other weights or in another dtype than the readings (teacher.dtype auto differs here?)"
        )
    return "\n".join(lines)
