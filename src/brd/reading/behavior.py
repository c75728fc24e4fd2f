"""What a reading behavior is: a prompt, a parser, a verifier and a renderer, for one sentence at a time."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, resources
from typing import Any, Literal, Protocol, runtime_checkable

import yaml

Verdict = Literal["verified", "rejected", "malformed"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the verifier makes of an answer.

    ``content`` is the usable part of a verified reading (for rejected ones: what was parsed; None when
    malformed). ``reason`` is empty when verified. ``parts`` and ``parts_verified`` count what is judged singly
    (entities; a question with its answer is one part).
    """

    verdict: Verdict
    reason: str
    content: dict[str, Any] | None
    parts: int
    parts_verified: int


class Behavior(Protocol):
    """One basic reading behavior (paper: NER, QRA). A reading is one line of text that starts with ``cue``.

    The few-shot prompt of a sentence is ``prefix + suffix(sentence)`` and ends with the cue, which the teacher
    continues up to a ``stop`` string; lessons hold ``cue + render(content)``.
    """

    name: str
    cue: str
    prefix: str
    stop: tuple[str, ...]
    max_new_tokens: int

    def suffix(self, sentence: str) -> str: ...

    def parse(self, raw: str) -> dict[str, Any] | None:
        """The content of an answer, or None when it is malformed. Never raises, whatever the text."""
        ...

    def judge(self, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        """Parse and verify an answer against its sentence. Never raises."""
        ...

    def render(self, content: dict[str, Any]) -> str:
        """The answer in its canonical form (what follows the cue); ``parse(render(c))`` gives ``c`` back."""
        ...

    def is_empty(self, content: dict[str, Any]) -> bool:
        """Whether the reading says that there is nothing to note ('none')."""
        ...

    # How well a student's answer agrees with the teacher's reading of the same sentence.
    skill: str

    def given(self, reference: dict[str, Any]) -> str | None:
        """What stands after the cue before the student goes on, or None where the reading is not asked about."""
        ...

    def agreement(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> float | None:
        """A figure from 0 to 1 over (student's text after ``given``, teacher's content); None without pairs."""
        ...


@dataclass(frozen=True, slots=True)
class Trait:
    """Something about a reading that an audit counts. ``about`` heads its table.

    ``value`` is a label such as a type of entity, or a number such as that of an answer's words. Of what a label is
    given to, ``name`` is told apart and counted (names of persons, questions with `who`); it may be empty.
    """

    about: str
    value: str | int
    name: str = ""


@runtime_checkable
class WithTraits(Protocol):
    """A behavior that has figures of its own in an audit. Without this method it has those that all have."""

    def traits(self, content: dict[str, Any]) -> Iterable[Trait]:
        """What is counted of a verified reading."""
        ...


# A new behavior is one file and its exemplars: name it here.
BEHAVIORS = {"ner": "brd.reading.ner:NamedEntities", "qra": "brd.reading.qra:QuestionAndAnswer"}


def load_behaviors(names: Iterable[str], exemplar_set: str = "plain") -> dict[str, Behavior]:
    """The behaviors of these names, in their order, prompted with a set of exemplars (see ``exemplars``)."""
    loaded: dict[str, Behavior] = {}
    for name in names:
        module, _, attribute = BEHAVIORS[name].partition(":")
        loaded[name] = getattr(import_module(module), attribute)(exemplar_set)
    return loaded


def exemplars(name: str, exemplar_set: str = "plain") -> dict[str, Any]:
    """The task description and exemplars of a behavior, from ``exemplars/<set>/<name>.yaml``.

    ``plain`` is for models that go on with a text, ``instruct`` for those that follow instructions.
    """
    file = resources.files("brd.reading").joinpath(f"exemplars/{exemplar_set}/{name}.yaml")
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


def prompt_hash(behavior: Behavior) -> str:
    """Changes whenever the prompt, the stop rule or the length limit of a behavior does."""
    parts = [behavior.prefix, behavior.suffix("\0"), *behavior.stop]
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:16]


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, as one space."""
    return " ".join(text.split())


_WORD = re.compile(r"\w+(?:['’]\w+)*")
# Words that carry no content of their own (English); a reading may add them freely.
FUNCTION_WORDS = frozenset(
    """a an the this that these those it its it's he she they him her them his hers their theirs i me my we us our you
    your who whom whose which what when where why how is are was were be been being am do does did done has have had
    having will would can could shall should may might must of in on at to from by for with about as into through
    during before after above below over under between against and or but nor so yet if then than because since while
    although though not no yes there here very too also just only both each all any some more most other such own same
    s t d ll m o re ve y up down out off again once one's himself herself itself themselves someone
    something nobody nothing everyone everybody everything anyone anybody anything others neither either""".split()
)


def words(text: str) -> list[str]:
    return [w.lower().replace("’", "'").removesuffix("'s") for w in _WORD.findall(text)]


def content_words(text: str) -> list[str]:
    return [w for w in words(text) if w not in FUNCTION_WORDS]


@lru_cache(2**16)
def stem(word: str) -> str:
    """A crude English stem: enough to match 'moved' with 'moving' and 'cities' with 'city'."""
    for suffix in ("ingly", "edly", "ies", "ing", "ed", "es", "ly", "s", "e", "y"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def grounded_share(claim: str, sentence: str, framing: frozenset[str] = frozenset()) -> float:
    """The share of the claim's content words that stand in the sentence (by stem); 1.0 if it has none.

    Words of ``framing`` (stems) belong to the talk about sentences ('contrast', 'reason') and do not count.
    """
    claimed = [stem(w) for w in content_words(claim)]
    claimed = [w for w in claimed if w not in framing]
    there = {stem(w) for w in words(sentence)}
    return sum(w in there for w in claimed) / len(claimed) if claimed else 1.0
