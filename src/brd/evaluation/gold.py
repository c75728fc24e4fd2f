"""How well a model reads against human annotations: named entities, and answers to given questions.

Beside ``reading_skill``, whose figures are of the agreement with a teacher: these also tell how good a teacher is.
Sources: CoNLL-2003 (Tjong Kim Sang and De Meulder 2003), Universal NER (Mayhew et al. 2024), SQuAD v1.1 (Rajpurkar et
al. 2016) and files of its format such as XQuAD (Artetxe et al. 2020).
"""

import hashlib
import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from brd.errors import BrdError
from brd.evaluation.reading_skill import write_readings
from brd.evaluation.statistics import DRAWS, Floats
from brd.reading.behavior import Behavior, one_line
from brd.reading.languages import load_language, word_f1
from brd.teachers.teacher import Teacher
from brd.text import sentences

# Sentences as long as those that are read, in characters.
SHORTEST, LONGEST = 15, 400
# The annotators' types as brd calls them.
TYPES = {"PER": "person", "ORG": "organization", "LOC": "location", "MISC": "other"}
# What all annotators mark; MISC is CoNLL-2003's alone.
SHARED = ("person", "organization", "location")

_LAYOUTS = (
    "`token POS chunk tag` (CoNLL-2003), or token number, token and tag with tabs between them below a "
    "`# text = ...` line (UNER)"
)
_TEXT = re.compile(r"# *text *= *(?P<text>.*\S)")
_TAG = re.compile(rf"(?P<begin>[BI])-(?P<type>{'|'.join(TYPES)})")
# Enough to write CoNLL-2003's tokens as a sentence: what sticks to the word before it, and to the word behind it.
_STICKS_LEFT = re.compile(r"[.,;:!?%)\]}]+|'\w*|n't")
_STICKS_RIGHT = tuple("([{$£€")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class GoldEntities:
    """A sentence and its entities in their order, (surface text, brd's type); a name occurs as often as it is marked.

    Surface texts are cut from the sentence, so each stands in it.
    """

    sentence: str
    entities: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """A question on one sentence and the answers that annotators gave, each once; all of them stand in the sentence."""

    sentence: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    line: int
    text: str
    tag: str


def load_entities(path: Path, limit: int | None = None) -> list[GoldEntities]:
    """The sentences of a CoNLL-2003 file (IOB1) or a UNER file (IOB2), in order; the content tells which it is.

    With ``limit`` at most so many sentences of 15 to 400 characters, each once: those whose SHA-256 is lowest, a sample
    from all over the file that does not depend on order. Raises BrdError naming file and line.
    """
    found = [_marked(path, text, tokens) for text, tokens in _blocks(path)]
    if not found:
        raise BrdError(f"{path}: no sentence found; the columns should be {_LAYOUTS}")
    if limit is not None:
        once: dict[str, GoldEntities] = {}
        for gold in found:
            if _readable(gold.sentence):
                once.setdefault(gold.sentence, gold)
        found = _sample(list(once.values()), limit, lambda gold: gold.sentence)
        if not found:
            raise BrdError(f"{path}: no sentence of {SHORTEST} to {LONGEST} characters")
    return found


def load_answers(path: Path, limit: int | None = None) -> list[GoldAnswer]:
    """The questions of a SQuAD v1.1 file that one sentence of 15 to 400 characters answers, in order.

    That sentence is the one that holds the whole first answer; further answers count where they lie in it too.
    Questions whose answer runs over a sentence's end are left out, and those without an answer. ``limit`` keeps the
    questions whose id has the lowest SHA-256. Raises BrdError naming the file and the line, key or question.
    """
    found: dict[str, GoldAnswer] = {}
    for article in _squad(path).data:
        for paragraph in article.paragraphs:
            context = paragraph.context
            spans = sentences.split(context, "en")
            for asked in paragraph.qas:
                for a in asked.answers:
                    if not context.startswith(a.text, a.answer_start):
                        raise BrdError(
                            f"{path}: question {asked.id!r}: its answer {one_line(a.text)!r} should stand at character "
                            f"{a.answer_start} of the context"
                        )
                for span in spans:
                    sentence = context[span.start : span.end]
                    held = [a for a in asked.answers if span.start <= a.answer_start <= span.end - len(a.text)]
                    if asked.answers and held[:1] == asked.answers[:1] and _readable(sentence):
                        answers = tuple(dict.fromkeys(a.text for a in held))
                        found.setdefault(asked.id, GoldAnswer(sentence, one_line(asked.question), answers))
    chosen = list(found)
    if limit is not None:
        chosen = _sample(chosen, limit, lambda name: name)
    if not chosen:
        raise BrdError(f"{path}: no question that one sentence of {SHORTEST} to {LONGEST} characters answers")
    return [found[name] for name in chosen]


def entity_figures(
    engine: Teacher,
    behavior: Behavior,
    gold: Sequence[GoldEntities],
    *,
    separator: str,
    prompted: bool,
    drop_bad_parts: bool = True,
) -> dict[str, Any]:
    """The entity readings that a model writes, against the annotated ones; shares from 0 to 1.

    Verified readings count as they are, all others as empty. A name counts once a sentence, as in a reading, whatever
    its case. ``f1``, ``precision`` and ``recall``: micro, over pairs of name and type; person, organization and
    location only, on both sides. ``low``, ``high``: 95 % interval of ``f1``, bootstrap over sentences.
    ``f1_untyped``: names alone, of these types and other, on both sides (where annotators do not mark other, as in
    UNER, what is written as such is wrong). ``well_formed``: share of sentences; ``n``: sentences. None where nothing
    can be computed (precision without a name written).
    """
    written = write_readings(engine, behavior, [(g.sentence, "") for g in gold], separator, prompted)
    well_formed = 0
    typed, untyped = list[tuple[int, int, int]](), list[tuple[int, int, int]]()
    for item, (raw, finished) in zip(gold, written, strict=True):
        judged = behavior.judge(raw, item.sentence, finished=finished, drop_bad_parts=drop_bad_parts)
        well_formed += judged.verdict != "malformed"
        content = judged.content if judged.verdict == "verified" else None
        typed.append(_entity_counts(content, item, SHARED))
        untyped.append(_entity_counts(content, item, (*SHARED, "other"), names_alone=True))
    low, high = _interval(_f1_parts(typed))
    matched, wrote, marked = (sum(row[i] for row in typed) for i in range(3))
    return {
        "n": len(gold),
        "f1": _ratio(_f1_parts(typed)),
        "low": low,
        "high": high,
        "precision": matched / wrote if wrote else None,
        "recall": matched / marked if marked else None,
        "f1_untyped": _ratio(_f1_parts(untyped)),
        "well_formed": well_formed / len(gold) if gold else None,
    }


def entity_parts(contents: Sequence[dict[str, Any] | None], gold: Sequence[GoldEntities]) -> Floats:
    """What ``f1`` of ``entity_figures`` is made of, by sentence (n, 2): the micro F1 of any of them is the sum of the
    first column over that of the second. ``contents`` of verified readings, None for others."""
    return _f1_parts([_entity_counts(*pair, SHARED) for pair in zip(contents, gold, strict=True)])


def _entity_counts(
    content: dict[str, Any] | None, item: GoldEntities, types: Sequence[str], names_alone: bool = False
) -> tuple[int, int, int]:
    written = [(e["text"], e["type"]) for e in (content or {"entities": []})["entities"]]

    def told(side: Sequence[tuple[str, str]]) -> set[Any]:
        pairs = {(one_line(text).lower(), kind) for text, kind in side if kind in types}
        return {text for text, _ in pairs} if names_alone else pairs

    return _counts(told(written), told(item.entities))


def answer_figures(
    engine: Teacher, behavior: Behavior, gold: Sequence[GoldAnswer], *, separator: str, prompted: bool
) -> dict[str, Any]:
    """A model's answers to the annotators' questions, its first line of text each; shares from 0 to 1.

    ``f1``: mean F1 of words with the best of the answers. ``low``, ``high``: 95 % interval of it, bootstrap over
    sentences (with all their questions). ``exact_match``: share that equals an answer but for case, punctuation and
    articles, as in SQuAD. ``n``: questions. None without questions.
    """
    asked = [(g.sentence, behavior.given({"question": g.question}) or "") for g in gold]
    written = write_readings(engine, behavior, asked, separator, prompted)
    # As in SQuAD, whose articles are English in other languages' files too.
    english = load_language("en")
    sums: dict[str, list[float]] = {}
    exact = 0
    for item, (raw, _) in zip(gold, written, strict=True):
        answer = raw.strip().split("\n")[0]
        total = sums.setdefault(item.sentence, [0.0, 0.0])
        total[0] += max(word_f1(answer, wanted, english) for wanted in item.answers)
        total[1] += 1
        exact += any(_normal(answer) == _normal(wanted) for wanted in item.answers)
    parts = np.array(list(sums.values()), dtype=np.float64).reshape(-1, 2)
    low, high = _interval(parts)
    return {
        "n": len(gold),
        "f1": _ratio(parts),
        "low": low,
        "high": high,
        "exact_match": exact / len(gold) if gold else None,
    }


def gold_figures(
    entities_path: Path | None,
    answers_path: Path | None,
    limit: int,
    engine: Teacher,
    behaviors: dict[str, Behavior],
    separator: str,
    prompted: bool,
) -> dict[str, Any]:
    """``entities`` and ``answers``: the figures above over at most ``limit`` sentences and questions.

    None for a part without its file or its behavior (``ner``, ``qra``). Raises BrdError for a file that cannot be read.
    """
    entities = answers = None
    if entities_path and (ner := behaviors.get("ner")):
        marked = load_entities(entities_path, limit)
        entities = entity_figures(engine, ner, marked, separator=separator, prompted=prompted)
    if answers_path and (qra := behaviors.get("qra")):
        asked = load_answers(answers_path, limit)
        answers = answer_figures(engine, qra, asked, separator=separator, prompted=prompted)
    return {"entities": entities, "answers": answers}


def _content(path: Path) -> str:
    if not path.is_file():
        raise BrdError(f"{path}: no such file of annotations")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BrdError(f"{path}:{line}: not UTF-8 text") from None


def _blocks(path: Path) -> Iterator[tuple[str | None, list[_Token]]]:
    """The tokens of each sentence with its text where the file gives one."""
    # No splitlines: it also ends lines at characters that tokens may hold.
    lines = [line.rstrip("\r") for line in _content(path).split("\n")]
    # A "#" may also be a token, in CoNLL-2003.
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    numbered = re.match(r"[0-9]+\t", first) is not None
    text: str | None = None
    tokens: list[_Token] = []
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip():
            if tokens:
                yield text, tokens
            text, tokens = None, []
        elif numbered and line.startswith("#"):
            if match := _TEXT.match(line):
                text = match["text"]
        elif not line.startswith("-DOCSTART-"):
            tokens.append(_token(path, number, line, numbered))


def _token(path: Path, number: int, line: str, numbered: bool) -> _Token:
    columns = line.split("\t") if numbered else re.split("[ \t]+", line.strip(" \t"))
    whole = len(columns) >= 3 and columns[0].isdecimal() and columns[1].strip()
    if not (whole if numbered else len(columns) == 4):
        raise BrdError(f"{path}:{number}: the columns should be {_LAYOUTS}")
    token, tag = columns[1:3] if numbered else (columns[0], columns[3])
    if tag != "O" and not _TAG.fullmatch(tag):
        raise BrdError(f"{path}:{number}: the tag should be O, or B- or I- with {', '.join(TYPES)} (got {tag!r})")
    return _Token(number, token, tag)


def _marked(path: Path, text: str | None, tokens: list[_Token]) -> GoldEntities:
    """The sentence of these tokens, their entities cut from it.

    An I- tag starts an entity where none of its type goes on (IOB1); IOB2 has no such tag and reads the same.
    """
    if text is None:
        text = _joined([token.text for token in tokens])
    entities: list[tuple[int, int, str]] = []
    end, going_on = 0, ""
    for token in tokens:
        start = end + len(text[end:]) - len(text[end:].lstrip())
        if not text.startswith(token.text, start):
            raise BrdError(
                f"{path}:{token.line}: the token {token.text!r} should be what comes next in the sentence's "
                f"`# text` (there: {text[start : start + 20]!r})"
            )
        end = start + len(token.text)
        match = _TAG.fullmatch(token.tag)
        kind = match["type"] if match else ""
        if match and kind == going_on and match["begin"] == "I":
            entities[-1] = (entities[-1][0], end, kind)
        elif match:
            entities.append((start, end, kind))
        going_on = kind
    return GoldEntities(text, tuple((text[a:b], TYPES[kind]) for a, b, kind in entities))


def _joined(tokens: list[str]) -> str:
    """Tokens as a sentence: spaces as a typesetter puts them, quotation marks opening and closing by turns."""
    out, glued, quoted = "", True, False
    for token in tokens:
        closing = token == '"' and quoted
        out += token if glued or closing or _STICKS_LEFT.fullmatch(token) else f" {token}"
        quoted = quoted != (token == '"')
        glued = token in _STICKS_RIGHT or (token == '"' and quoted)
    return out


class _Answer(BaseModel):
    answer_start: NonNegativeInt
    text: str = Field(min_length=1)


class _Question(BaseModel):
    id: str
    question: str = Field(min_length=1)
    answers: list[_Answer]


class _Paragraph(BaseModel):
    context: str
    qas: list[_Question]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    data: list[_Article]


def _squad(path: Path) -> _Squad:
    try:
        return _Squad.model_validate(json.loads(_content(path)))
    except json.JSONDecodeError as error:
        raise BrdError(f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole file"
        raise BrdError(f"{path}: {key}: {first['msg'].lower()}; it should be as in SQuAD v1.1") from None


def _readable(sentence: str) -> bool:
    return SHORTEST <= len(sentence) <= LONGEST


T = TypeVar("T")


def _sample(found: list[T], limit: int, name: Callable[[T], str]) -> list[T]:
    """Those of the ``limit`` lowest hashes of their names, in their order."""
    hashes = [hashlib.sha256(name(item).encode()).digest() for item in found]
    chosen = sorted(range(len(found)), key=hashes.__getitem__)[:limit]
    return [found[n] for n in sorted(chosen)]


def _counts(mine: set[Any], wanted: set[Any]) -> tuple[int, int, int]:
    """How many are right, how many were written, how many are marked."""
    return len(mine & wanted), len(mine), len(wanted)


def _f1_parts(counts: list[tuple[int, int, int]]) -> Floats:
    """(sentences, 2): micro F1 is the first column's sum over the second's."""
    table = np.array(counts, dtype=np.float64).reshape(-1, 3)
    return np.stack([2 * table[:, 0], table[:, 1] + table[:, 2]], axis=1)


def _ratio(parts: Floats) -> float | None:
    above, below = parts.sum(axis=0)
    return float(above / below) if below else None


def _interval(parts: Floats) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap of ``_ratio`` over rows of ``parts`` (n, 2); seeded. None where it cannot be taken."""
    n = len(parts)
    if not n or not parts[:, 1].any():
        return None, None
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    above, below = (times @ parts).T
    low, high = np.quantile(above[below > 0] / below[below > 0], [0.025, 0.975])
    return float(low), float(high)


def _normal(answer: str) -> str:
    return one_line(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)))
