"""A dataset of readings as the Hugging Face Hub takes it: Parquet files and a card that says how they were made."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from brd.reading.behavior import one_line, prompt_hash
from brd.reading.export import (
    SPLITS,
    ReadRun,
    Selection,
    as_line,
    part,
    placed,
    record,
    stream,
    teacher_of,
)
from brd.reading.store import SCHEMA, Reading, export

# The columns of the data files, in their order.
FIELDS = {
    "key": "names the reading: the hash of teacher, decoding, prompt, length limit and sentence",
    "document": "the source text (book, article, file)",
    "paragraph": "number of the paragraph in its document, from 0",
    "sentence": "number of the sentence in its paragraph, from 0",
    "start": "where the sentence begins in its paragraph, in characters",
    "end": "where it ends",
    "text": "the sentence",
    "behavior": "what was read: `ner` named entities, `qra` a question with its answer, or another behavior's name",
    "raw": "the teacher's answer as it came",
    "finished": "false where the answer was cut off at the length limit",
    "content": "the reading as JSON (null where the answer is malformed); entities have their place in the sentence, "
    "each run of white space counted as one character",
    "verdict": "`verified`, `rejected` or `malformed`",
    "reason": "why it is not verified",
    "parts": "entities in the answer, or 1 for a question with its answer",
    "parts_verified": "how many of them are verified",
    "teacher": "hash of the teacher's identity",
    "prompt_hash": "hash of the prompt",
    "prompt_tokens": "tokens of the prompt",
    "new_tokens": "tokens of the answer",
    "language": "code of the language that the sentence is in, by what the corpus or the recipe says",
}
_TASKS = {"ner": "token-classification", "qra": "question-answering"}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
# What the card tells of the recipe. Paths of the machine that read are nobody's business.
_TOLD = {
    "text": {
        "layout",
        "field",
        "subset",
        "split",
        "revision",
        "language",
        "language_field",
        "language_of",
        "min_characters",
        "max_characters",
        "order",
        "held_out",
    },
    "reading": {"behaviors", "exemplars", "languages", "sentences", "held_out_sentences", "drop_bad_entities"},
    "teacher": {"kind", "dtype", "chat_template", "max_new_tokens"},
}


@dataclass(frozen=True, slots=True)
class Given:
    """What a run does not know about its own data: where it goes, and on which terms."""

    repository: str
    licence: str
    note: str = ""


def write_dataset(
    run: ReadRun, selection: Selection, given: Given, folder: Path, progress: Callable[[int], None] | None = None
) -> dict[str, Counter[str]]:
    """Write ``data/*.parquet``, one file a part, and ``README.md`` into ``folder``; returns the counts by part: of
    ``behavior.verdict`` and ``behavior.empty``, and of ``readings``. A part without readings has no file.

    The files are also what other runs take as ``reading.known``. Raises BrdError where a reading is missing.
    """
    (folder / "data").mkdir(parents=True)
    counts: dict[str, Counter[str]] = {}
    samples: dict[str, dict[str, Any]] = {}
    behaviors = run.behaviors(selection.behaviors)

    def counted(reading: Reading, found: Counter[str]) -> None:
        found["readings"] += 1
        found[f"{reading.behavior}.{reading.verdict}"] += 1
        if reading.verdict == "verified" and behaviors[reading.behavior].is_empty(reading.parsed() or {}):
            found[f"{reading.behavior}.empty"] += 1

    for name in selection.parts():
        found: Counter[str] = Counter()
        one = replace(selection, part=name)

        def rows(one: Selection = one, found: Counter[str] = found) -> Iterator[tuple[Reading, str]]:
            for paragraph, readings in stream(run, one, progress):
                for (number, behavior), reading in readings.items():
                    if one.takes(reading):
                        counted(reading, found)
                        if reading.verdict == "verified" and part(paragraph) == selection.parts()[0]:
                            samples.setdefault(behavior, record(paragraph, number, reading))
                        yield placed(paragraph, number, reading), paragraph.language

        file = folder / "data" / f"{SPLITS[name]}.parquet"
        if export(rows(), file, f"{given.licence}. {given.note}".strip(), SCHEMA.names):
            counts[name] = found
        else:
            file.unlink()
    (folder / "README.md").write_text(card(run, selection, given, counts, samples), encoding="utf-8")
    return counts


def card(
    run: ReadRun,
    selection: Selection,
    given: Given,
    counts: dict[str, Counter[str]],
    samples: dict[str, dict[str, Any]],
) -> str:
    """The dataset card: the Hub's metadata, then Markdown."""
    parts = [
        f"---\n{_header(run, selection, given, counts)}---\n",
        f"# Readings of {run.recipe.name}\n",
        _opening(run, selection, given),
        _use(given, counts),
        _numbers(selection, counts),
        _making(run, selection, given),
        _fields(samples),
        _limits(selection),
    ]
    return "\n".join(parts)


def _header(run: ReadRun, selection: Selection, given: Given, counts: dict[str, Counter[str]]) -> str:
    from huggingface_hub import DatasetCardData

    total = sum(found["readings"] for found in counts.values())
    sources = [s.removeprefix("hub:") for s in _sources(run) if s.startswith("hub:")]
    languages = run.recipe.reading.languages or [run.recipe.text.language]
    data = DatasetCardData(
        language=[code for code in languages if len(code) in (2, 3)] or None,
        license=given.licence,
        annotations_creators=["machine-generated"],
        size_categories=[next((name for most, name in _SIZES if total < most), "10M<n<100M")],
        source_datasets=sources or None,
        task_categories=sorted({_TASKS[name] for name in selection.behaviors if name in _TASKS}) or None,
        pretty_name=f"Readings of {run.recipe.name}",
        tags=["basic-reading-distillation", "synthetic"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": SPLITS[name], "path": f"data/{SPLITS[name]}.parquet"} for name in counts],
            }
        ],
    )
    return data.to_yaml() + "\n"


def version() -> str:
    try:
        return metadata.version("brd")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _sources(run: ReadRun) -> list[str]:
    source = run.recipe.text.source
    return [public(s) for s in ([source] if isinstance(source, str) else source)]


def public(name: str) -> str:
    """A name of a model or a source without the folders of the machine where it lay, an address without its login."""
    name = re.sub(r"(?<=//)[^/@\s]*@", "", name)
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~", "$")) else name


# What the language model did with a sentence.
_DID = {
    "ner": "named the entities",
    "qra": "raised a question and answered it",
    "paraphrase": "said it in other words",
    "implication": "wrote what follows from it and what does not",
    "relations": "named the relations that it states",
}


def _opening(run: ReadRun, selection: Selection, given: Given) -> str:
    did = ", or ".join(_DID.get(name, f"answered for `{name}`") for name in selection.behaviors)
    what = ", ".join(f"`{source}`" for source in _sources(run))
    own = "our own CC0 prose, part of the program" if _sources(run) == ["passages"] else ""
    note = one_line(given.note) or own or "see the licence"
    return (
        "A language model read text sentence by sentence, for basic reading distillation "
        f"([paper](https://arxiv.org/abs/2507.19741)): it {did}. "
        "Each answer was checked against its sentence.\n\n"
        f"- **Source of the text:** {note} (`text.source`: {what})\n"
        f"- **Licence:** `{given.licence}`\n"
        f"- **Teacher:** `{public(run.recipe.teacher.model)}`, hash `{teacher_of(run)['hash']}`\n"
    )


def _use(given: Given, counts: dict[str, Counter[str]]) -> str:
    files = ", ".join(f"data/{SPLITS[name]}.parquet" for name in counts)
    return (
        f"```python\nfrom datasets import load_dataset\n\n"
        f"readings = load_dataset({json.dumps(given.repository)})\n```\n\n"
        f"The files ({files}) are also what a recipe's `reading.known` takes: whoever reads the same sentences with "
        "the same teacher and prompt need not ask again.\n"
    )


def _numbers(selection: Selection, counts: dict[str, Counter[str]]) -> str:
    lines = [
        "## What is in it\n",
        "| split | behavior | readings | verified | of these empty | rejected | malformed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in counts.items():
        for behavior in selection.behaviors:
            by = {verdict: found[f"{behavior}.{verdict}"] for verdict in ("verified", "rejected", "malformed")}
            total = sum(by.values())
            rate = f" ({100 * by['verified'] / total:.1f} %)" if total else ""
            empty = found[f"{behavior}.empty"]
            lines.append(
                f"| {SPLITS[name]} | {behavior} | {total} | {by['verified']}{rate} | {empty} | {by['rejected']} "
                f"| {by['malformed']} |"
            )
    only = "Only verified readings are here. " if selection.verified_only else ""
    return (
        "\n".join(lines) + f"\n\n{only}`test` are documents that were held out: chosen by the hash of the document's "
        "name, and never trained on. Empty: the reading says that there is nothing to note. A sentence that occurs "
        "several times has a row at each place, with the same key.\n"
    )


def _making(run: ReadRun, selection: Selection, given: Given) -> str:
    told = run.recipe.model_dump(include=_TOLD)
    told["text"]["source"] = _sources(run)
    told["reading"]["behaviors"] = list(map(public, run.recipe.reading.behaviors))
    told["teacher"]["model"] = public(run.recipe.teacher.model)
    recipe = yaml.safe_dump({"name": run.recipe.name, **told}, sort_keys=False, allow_unicode=True)
    identity = [f"- {key}: `{public(str(value))}`" for key, value in teacher_of(run).items()]
    lines = [
        "## How it was made\n",
        f"With the program `brd` {version()} and this recipe (paths cut to their last part):\n",
        f"```yaml\n{recipe}```\n",
        "```sh",
        f"brd read recipe.yaml --out runs/{run.recipe.name}",
        f"brd push runs/{run.recipe.name} {given.repository} {_options(run, selection, given)}",
        "```\n",
        "The teacher's identity, on which its hash rests (weights, number format, decoding):\n",
        *identity,
        "\nThe prompts: a task, exemplars, then the sentence; the teacher goes on after the cue. With `chat_template` "
        "they are turns of a conversation.\n",
    ]
    behaviors = run.behaviors(selection.behaviors)
    for title, behavior in (
        (f"{name} ({code})" if code else name, behavior)
        for name in behaviors
        for code, behavior in behaviors.each(name).items()
    ):
        limit = min(behavior.max_new_tokens, run.recipe.teacher.max_new_tokens)
        prompt = behavior.prefix + behavior.suffix("...")
        lines += [
            f"<details><summary>{title}: prompt <code>{prompt_hash(behavior)}</code>, at most {limit} new tokens"
            f"</summary>\n\n````text\n{prompt}\n````\n\n</details>\n",
        ]
    return "\n".join(lines)


def _options(run: ReadRun, selection: Selection, given: Given) -> str:
    options = ["--licence", given.licence]
    if given.note:
        options += ["--note", one_line(given.note)]
    if list(selection.behaviors) != run.recipe.reading.names:
        options += ["--behaviors", ",".join(selection.behaviors)]
    if selection.part != "all":
        options += ["--part", selection.part]
    return shlex.join([*options, *(["--verified"] if selection.verified_only else [])])


def _fields(samples: dict[str, dict[str, Any]]) -> str:
    lines = ["## Fields\n", "| field | what it is |", "| --- | --- |"]
    lines += [f"| `{name}` | {what} |" for name, what in FIELDS.items()]
    for sample in samples.values():
        shown = {key: sample[key] for key in ("document", "text", "behavior", "raw", "content", "verdict")}
        lines.append(f"\n````json\n{as_line(shown)}````")
    return "\n".join(lines) + "\n"


def _limits(selection: Selection) -> str:
    lines = [
        "## Limits\n",
        "- All readings are a machine's; nobody looked at each of them. `verified` means that a program found nothing "
        "wrong, not that the reading is right or complete.",
    ]
    if "ner" in selection.behaviors:
        lines.append(
            "- Entities are verified by form only: they stand in the sentence word for word, once, with a known type "
            "and something that looks like a name. Types and descriptions are not checked, and missed entities are "
            "not noticed. Bad entities of a reading may have been dropped singly (`drop_bad_entities`); `raw` has all."
        )
    if "qra" in selection.behaviors:
        lines.append(
            "- Answers are verified by their words: most of an answer's content words stand in the sentence. Whether "
            "it answers the question is not checked. The lists of words and stems are rough."
        )
    if {"paraphrase", "implication"} & set(selection.behaviors):
        lines.append(
            "- Paraphrases and implications are verified by their words too: whether a paraphrase means the same, and "
            "whether a claim follows, is not checked."
        )
    if "relations" in selection.behaviors:
        lines.append("- Relations are verified by form: both ends stand in the sentence word for word.")
    lines += [
        "- Sentences were split by a program, and those beyond the length limits were not read.",
        "- The text keeps what its sources hold: names of people, errors, opinions. The readings add the teacher's "
        "own errors and biases.",
        "- The licence was stated by whoever published this. Terms of the teacher for its output may come on top.",
    ]
    return "\n".join(lines) + "\n"
