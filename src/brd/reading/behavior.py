"""What a reading behavior is: a prompt, a parser, a verifier and a renderer, for one sentence at a time."""

import hashlib
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import yaml

from brd.errors import BrdError
from brd.reading.languages import load_language
from brd.yaml_file import read_yaml

if TYPE_CHECKING:
    from brd.sections.reading import Reading

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


def malformed(finished: bool, form: str) -> Judgement:
    """Of an answer that could not be parsed, or that ran out of tokens; ``form`` is what it should look like."""
    return Judgement("malformed", f"not of the form '{form}'" if finished else "cut off before its end", None, 0, 0)


def judged(content: dict[str, Any], flaw: str) -> Judgement:
    """Of an answer that is judged as one part: verified without a flaw, else rejected for it."""
    return Judgement("rejected", flaw, content, 1, 0) if flaw else Judgement("verified", "", content, 1, 1)


def listed(raw: str) -> list[str] | None:
    """The pieces of an answer that is a list on one line, ``a; b; c``: none of ``none``; None for several lines."""
    text = raw.strip()
    if "\n" in text:
        return None
    return [] if text.rstrip(".").lower() == "none" else [p.strip() for p in text.removesuffix(".").split(";")]


def judged_parts(
    content: dict[str, Any], key: str, check: Callable[[dict[str, Any]], dict[str, Any] | str], drop_bad_parts: bool
) -> Judgement:
    """Of an answer whose parts, the list under ``key``, are judged singly and in their order: ``check`` gives a part as
    it is kept, or why it is bad. Bad ones are left out, or with ``drop_bad_parts`` false reject the others too."""
    checked = [check(part) for part in content[key]]
    good = [part for part in checked if not isinstance(part, str)]
    flaws = [part for part in checked if isinstance(part, str)]
    if flaws and (not good or not drop_bad_parts):
        return Judgement("rejected", flaws[0], content, len(checked), len(good))
    return Judgement("verified", "", {key: good}, len(checked), len(good))


class Behavior(Protocol):
    """One basic reading behavior (paper: NER, QRA). A reading is text of a line or two that starts with ``cue``.

    It is made from its exemplars (a YAML file, see ``exemplars``) and the rules of the language that it asks in. Cue,
    labels and ``none`` are the same in all languages: a student is asked by them. The few-shot prompt of a sentence is
    ``prefix + suffix(sentence)`` and ends with the cue, which the teacher continues up to a ``stop`` string; lessons
    hold ``cue + render(content)``.
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
BEHAVIORS = {
    "ner": "brd.reading.ner:NamedEntities",
    "qra": "brd.reading.qra:QuestionAndAnswer",
    "paraphrase": "brd.reading.paraphrase:Paraphrase",
    "implication": "brd.reading.implication:Implication",
    "relations": "brd.reading.relations:Relations",
}


class Behaviors(dict[str, Behavior]):
    """Behaviors by name, as they ask in the first of ``languages``; ``of`` has them in each.

    Without ``languages`` every sentence is asked in English, whatever it is written in.
    """

    def __init__(self, by_language: dict[str, dict[str, Behavior]], languages: tuple[str, ...] = ()) -> None:
        super().__init__(next(iter(by_language.values())))
        self._by_language = by_language
        self.languages = languages

    def of(self, name: str, language: str) -> Behavior:
        """The behavior that asks for sentences of a language (a code)."""
        return self._by_language[language][name] if self.languages else self[name]

    def each(self, name: str) -> dict[str, Behavior]:
        """One behavior by language; under an empty code where it is the same for all."""
        return {code: self.of(name, code) for code in self.languages or ("",)}


def load_behaviors(
    names: Iterable[str], exemplar_set: str = "plain", languages: Iterable[str] | None = None
) -> Behaviors:
    """The behaviors of these names (or files of one's own, see ``own_behavior``), in their order, prompted with a set
    of exemplars (see ``exemplars``) in each of the languages.

    Raises BrdError for exemplars that there are none of, for a file that is no behavior, and for two with one cue.
    """
    entries, codes = list(names), tuple(languages or ())
    by_language = {
        code: {behavior_name(entry): _load(entry, exemplar_set, code) for entry in entries} for code in codes or ("en",)
    }
    cues: dict[str, str] = {}
    for name, behavior in next(iter(by_language.values())).items():
        if (other := cues.setdefault(behavior.cue, name)) != name:
            raise BrdError(f"reading.behaviors: {name} and {other} have the same cue {behavior.cue!r}; change one")
    return Behaviors(by_language, codes)


def behaviors_of(settings: "Reading") -> Behaviors:
    """The behaviors that a recipe reads with."""
    return load_behaviors(settings.behaviors, settings.exemplars, settings.languages)


def prompts(behaviors: Behaviors) -> dict[str, Any]:
    """The hash of each behavior's prompt, by language where there are several."""
    hashes = {name: {code: prompt_hash(b) for code, b in behaviors.each(name).items()} for name in behaviors}
    return {name: found.get("", found) for name, found in hashes.items()}


def _load(entry: str, exemplar_set: str, language: str) -> Behavior:
    if is_own(entry):
        from brd.reading import own_behavior

        return own_behavior.load(Path(entry), exemplar_set, language)
    module, _, attribute = BEHAVIORS[entry].partition(":")
    data = exemplars(entry, exemplar_set, language)
    made: Behavior = getattr(import_module(module), attribute)(data, load_language(language))
    return made


def is_own(entry: str) -> bool:
    """Whether an entry of ``reading.behaviors`` is a file of the user's rather than the name of a behavior of ours."""
    return entry.endswith(".py")


def behavior_name(entry: str) -> str:
    """The name of a behavior: of a file its own, without the ending."""
    return Path(entry).stem if is_own(entry) else entry


def exemplars(name: str, exemplar_set: str = "plain", language: str = "en", folder: Path | None = None) -> Any:
    """The task description and exemplars of a behavior: a mapping with the keys ``task`` and ``exemplars``."""
    file = exemplar_file(name, exemplar_set, language, folder)
    if folder is None:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    return read_yaml(file, "exemplars are a YAML mapping with the keys task and exemplars")[0]


def exemplar_file(name: str, exemplar_set: str, language: str, folder: Path | None = None) -> Path:
    """``exemplars/<set>/<name>.yaml`` in English, ``<name>.<language>.yaml`` in another language, in the package or in
    the ``folder`` of a behavior of one's own, where it may also lie beside it and is then for all sets.

    ``plain`` is for models that go on with a text, ``instruct`` for those that follow instructions. Raises BrdError
    where there is none.
    """
    here = folder or Path(__file__).parent
    file = f"{name}.yaml" if language == "en" else f"{name}.{language}.yaml"
    places = [here / "exemplars" / exemplar_set / file, *([here / file] if folder else [])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        spoken = sorted(p.name.split(".")[-2] for p in places[0].parent.glob(f"{name}.??.yaml"))
        where = (
            f"; there should be a file {' or '.join(map(str, reversed(places)))}"
            if folder
            else f"; there are some in {', '.join(['en', *spoken])} (reading.languages)"
        )
        raise BrdError(f"reading.behaviors: {name} has no exemplars in the language {language!r}{where}")
    return found


def few_shot(behavior: Behavior, task: str, shown: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """The ``prefix`` of a behavior: the task, then each exemplar's sentence with its content as a reading."""
    blocks = [behavior.suffix(sentence) + behavior.render(content) for sentence, content in shown]
    return "\n\n".join([one_line(task), *blocks]) + "\n\n"


def sentence_and_cue(sentence: str, cue: str) -> str:
    """The ``suffix`` of all our behaviors: the sentence on a line of its own, then the cue."""
    return f"Sentence: {one_line(sentence)}\n{cue}"


def prompt_hash(behavior: Behavior) -> str:
    """Changes whenever the prompt or the stop rule of a behavior does."""
    parts = [behavior.prefix, behavior.suffix("\0"), *behavior.stop]
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:16]


def micro_f1(pairs: Iterable[tuple[Set[Any], Set[Any]]]) -> float | None:
    """F1 over what was written and what was wanted, by pairs of sets; None without pairs."""
    sides = list(pairs)
    total = sum(len(written) + len(wanted) for written, wanted in sides)
    return 2 * sum(len(written & wanted) for written, wanted in sides) / total if sides else None


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, as one space."""
    return " ".join(text.split())


def find_words(text: str, sentence: str, start: int = 0) -> tuple[int, int] | None:
    """Where a text first stands in a sentence, letter for letter and not inside a word; None where it does not."""
    while (start := sentence.find(text, start)) >= 0:
        end = start + len(text)
        if not (start and _in_word(sentence[start - 1])) and not (end < len(sentence) and _in_word(sentence[end])):
            return start, end
        start += 1
        if start > len(sentence):
            break
    return None


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"
