"""What verifiers know of a language: function words, stems, and what tells a name from other words.

One YAML file a language in ``languages/``; its keys are the fields of ``Language`` and ``Names``, lists of words as
text with spaces between them. A language whose words are not set apart (Chinese, Thai) would need more than that.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import yaml

from brd.errors import BrdError

_WORD = re.compile(r"\w+(?:['’]\w+)*")
# A capital letter, a digit, or a letter of a script without capitals.
_STANDS_OUT = re.compile(r"[^\W_a-zß-öø-ÿ]")
# What stands before a word that begins a sentence or a quotation; the word before it may touch it.
_BEGINNINGS = tuple('.!?:"“„«‘(—')


@dataclass(frozen=True, slots=True)
class Names:
    """How names are told from nouns in a language that gives every noun a capital letter.

    ``never_after``: words that no name directly follows. ``articles``: a person of one word does not follow one. A
    single word is no name when it has one of the ``endings`` behind three letters or more, or is among ``nouns`` (all
    their forms, in plain letters). ``times``: a date holds a digit or one of these.
    """

    never_after: frozenset[str]
    articles: frozenset[str]
    endings: tuple[str, ...]
    times: frozenset[str]
    nouns: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Language:
    """The rules of one language. All words are in lower case.

    ``codes``: its names in corpora, our own first. ``function_words`` carry no content of their own; a reading may add
    them freely. ``articles`` are left out where answers are compared. A stem is a word in plain ``letters``, without
    one of the ``beginnings`` and without the first of the ``endings`` that fits (``endings_again``: as long as one
    fits), and with ``doubled_letters`` without the second of two equal letters at its end. ``framing`` are words of the
    talk about sentences (contrast, reason, attitude), ``verdicts`` answer a yes-or-no or attitude question and
    ``because`` introduces the reason. ``question_words``, ``question_measures`` (what may follow: how many),
    ``auxiliaries`` and ``about`` sort questions in an audit. ``names`` is None where only names have capitals.
    """

    codes: tuple[str, ...]
    function_words: frozenset[str]
    articles: frozenset[str]
    endings: tuple[str, ...]
    framing: frozenset[str]
    verdicts: frozenset[str]
    because: frozenset[str]
    question_words: tuple[str, ...]
    question_measures: Mapping[str, frozenset[str]]
    auxiliaries: frozenset[str]
    about: Mapping[str, frozenset[str]]
    beginnings: tuple[str, ...] = ()
    endings_again: bool = False
    doubled_letters: bool = False
    letters: Mapping[int, str] = field(default_factory=dict)
    names: Names | None = None

    @property
    def code(self) -> str:
        return self.codes[0]

    def content_words(self, text: str) -> list[str]:
        return [w for w in words(text) if w not in self.function_words]

    def stem(self, word: str) -> str:
        """A crude stem: enough to match 'moved' with 'moving', 'cities' with 'city', 'Häuser' with 'Haus'."""
        return _stem(self, word)

    def stems(self, words_: Iterable[str]) -> list[str]:
        return [self.stem(word) for word in words_]

    def grounded_share(self, claim: str, sentence: str, framing: frozenset[str] = frozenset()) -> float:
        """The share of the claim's content words that stand in the sentence (by stem); 1.0 if it has none.

        Words of ``framing`` (stems) belong to the talk about sentences ('contrast', 'reason') and do not count.
        """
        claimed = [w for w in self.stems(self.content_words(claim)) if w not in framing]
        there = set(self.stems(words(sentence)))
        return sum(w in there for w in claimed) / len(claimed) if claimed else 1.0

    def names_and_numbers(self, text: str) -> set[str]:
        """The words that hold a digit, and (where only names have capitals) those with a capital that is not due to
        their place at the beginning of what is said; in lower case."""
        found: set[str] = set()
        for number, match in enumerate(tokens := list(_WORD.finditer(text))):
            word = match[0]
            [plain] = words(word)
            if any(c.isdigit() for c in word):
                found.add(plain)
            elif self.names is None and stands_out(word) and plain not in self.function_words:
                begins = not number or text[tokens[number - 1].end() : match.start()].rstrip()[-1:] in _BEGINNINGS
                following = tokens[number + 1][0] if number + 1 < len(tokens) else ""
                if not begins or (stands_out(following) and following.lower() not in self.function_words):
                    found.add(plain)
        return found

    def is_name(self, text: str, before: str, kind: str) -> bool:
        """Whether a text can be a name of this kind (person, date, ...); ``before`` is what precedes it in its line."""
        content = [w for w in text.split() if w.lower() not in self.function_words]
        # "She" and "My companion" begin sentences, "the old mill" is no name: something else must stand out.
        if not any(map(stands_out, content)):
            return False
        rules = self.names
        if rules is None:
            return True
        # "alte Mühle": what is not capital at its head is an adjective.
        if not stands_out(content[0]) and not (kind == "work" and stands_out(text[0])):
            return False
        said = words(text)
        if kind == "date":
            return any(c.isdigit() for c in text) or any(w in rules.times for w in said)
        last = (words(before[-40:]) or [""])[-1] if before[-1:].isspace() else ""
        # A title may begin with anything: "Ein Sommer am Fluss".
        if last in rules.never_after or (kind != "work" and said and said[0] in rules.never_after):
            return False
        if len(content) > 1 or any(c.isdigit() for c in text):
            return True
        if kind == "work":
            return True
        alone = words(content[0])
        if kind == "person" and (last in rules.articles or (len(said) > 1 and said[0] in rules.articles)):
            return False
        return not any(w[3:].endswith(rules.endings) or w.translate(self.letters) in rules.nouns for w in alone)


# Most of what is spent on judging goes here, and most words come again.
@lru_cache(2**16)
def _stem(language: Language, word: str) -> str:
    word = word.translate(language.letters) if language.letters else word
    for beginning in language.beginnings:
        if word.startswith(beginning) and len(word) - len(beginning) >= 4:
            word = word.removeprefix(beginning)
            break
    while True:
        ending = next((e for e in language.endings if word.endswith(e) and len(word) - len(e) >= 3), "")
        word = word.removesuffix(ending)
        if not (ending and language.endings_again):
            break
    return word[:-1] if language.doubled_letters and len(word) > 3 and word[-1] == word[-2] else word


def words(text: str) -> list[str]:
    """The words of a text in lower case, without an English genitive's 's."""
    return [w.lower().replace("’", "'").removesuffix("'s") for w in _WORD.findall(text)]


def word_f1(answer: str, reference: str, language: Language) -> float:
    """F1 of two answers as bags of words, without articles."""
    a, b = (Counter(w for w in words(text) if w not in language.articles) for text in (answer, reference))
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def mean_word_f1(pairs: Sequence[tuple[str, Mapping[str, str]]], key: str, language: Language) -> float | None:
    """Mean F1 of words, of answers' first lines against what the references have under ``key``; None without pairs."""
    scores = [word_f1(raw.strip().split("\n")[0], reference[key], language) for raw, reference in pairs]
    return sum(scores) / len(scores) if scores else None


def leaves_out(claim: list[str], sentence: list[str]) -> bool:
    """Whether a claim's words all stand in a sentence in the same order: it then only leaves words out."""
    there = iter(sentence)
    return all(word in there for word in claim)


def stands_out(word: str) -> bool:
    """Whether a word has a capital letter, a digit, or a letter of a script without capitals."""
    return _STANDS_OUT.search(word) is not None


@cache
def _files() -> dict[str, str]:
    """The file of each language by its code."""
    folder = resources.files("brd.reading").joinpath("languages")
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir(), key=lambda f: f.name)
        if file.name.endswith(".yaml")
    }


def known_languages() -> tuple[str, ...]:
    """The codes of the languages that there are rules for."""
    return tuple(_files())


@cache
def load_language(code: str) -> Language:
    """The rules of a language by its code. Raises BrdError for one that there are none for."""
    if code not in _files():
        raise BrdError(f"no rules for the language {code!r}; known: {', '.join(known_languages())}")
    tree: dict[str, Any] = yaml.safe_load(_files()[code])
    names = tree.pop("names", None)
    codes = tuple(tree.pop("codes"))
    sets = ("function_words", "articles", "framing", "verdicts", "because", "auxiliaries")
    tree.update({key: frozenset(tree[key].split()) for key in sets})
    tree.update({key: tuple(tree.get(key, "").split()) for key in ("endings", "beginnings", "question_words")})
    for key in ("question_measures", "about"):
        tree[key] = {name: frozenset(found.split()) for name, found in tree[key].items()}
    tree["letters"] = {ord(letter): plain for letter, plain in tree.get("letters", {}).items()}
    plain = Language(codes=codes, **tree)
    # What is compared by stems is kept as stems.
    tree["framing"] = frozenset(plain.stems(plain.framing))
    tree["about"] = {name: frozenset(plain.stems(found)) for name, found in plain.about.items()}
    if names:
        split = {key: found.split() for key, found in names.items()}
        tree["names"] = Names(
            frozenset(split["never_after"]),
            frozenset(split["articles"]),
            tuple(split["endings"]),
            frozenset(split["times"]),
            frozenset(f"{n.translate(plain.letters)}{e}" for n in split["nouns"] for e in ("", *split["noun_endings"])),
        )
    return Language(codes=codes, **tree)


@cache
def _codes() -> dict[str, str]:
    return {name: code for code in known_languages() for name in load_language(code).codes}


def language_code(tag: str) -> str:
    """Our code for a corpus's name of a language (``de-AT``, ``deu_Latn``, ``DE``); of another its first part."""
    first = re.split(r"[-_]", tag.strip().lower(), maxsplit=1)[0]
    return _codes().get(first, first)
