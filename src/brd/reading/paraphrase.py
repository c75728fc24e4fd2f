"""Paraphrase: the sentence said in other words, with the same names and numbers (ours, not the paper's)."""

from collections.abc import Iterator, Sequence
from typing import Any

from brd.reading.behavior import Judgement, Trait, few_shot, judged, malformed, sentence_and_cue
from brd.reading.languages import Language, leaves_out, mean_word_f1, words


class Paraphrase:
    """``In other words: She gave up her post and set up a bread shop.``, on one line."""

    name = "paraphrase"
    skill = "paraphrase_f1"
    cue = "In other words:"
    stop: tuple[str, ...] = ("\n",)
    # As long as a long sentence; a recipe's teacher.max_new_tokens may be less.
    max_new_tokens = 120
    # Of the content words that are no names or numbers, at least this share is not the sentence's.
    new = 0.25
    # And of all content words, at least this share is: else it cannot be told that they are about the same.
    common = 0.2

    def __init__(self, exemplars: dict[str, Any], language: Language) -> None:
        self._language = language
        self.prefix = few_shot(self, exemplars["task"], [(e["sentence"], e) for e in exemplars["exemplars"]])

    def suffix(self, sentence: str) -> str:
        return sentence_and_cue(sentence, self.cue)

    def parse(self, raw: str) -> dict[str, Any] | None:
        said = raw.strip()
        return {"paraphrase": said} if said and "\n" not in said else None

    def judge(self, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        parsed = self.parse(raw)
        if parsed is None or not finished:
            return malformed(finished, "one line of text")
        return judged(parsed, self._flaw(parsed["paraphrase"], sentence))

    def _flaw(self, said: str, sentence: str) -> str:
        language, mine, theirs = self._language, words(said), words(sentence)
        if not mine:
            return "paraphrase without words"
        if leaves_out(mine, theirs) or leaves_out(theirs, mine):
            return "paraphrase copies the sentence"
        if not len(theirs) / 2 <= len(mine) <= 2 * len(theirs) + 2:
            return "paraphrase far shorter or longer than the sentence"
        kept = language.names_and_numbers(sentence)
        if kept - set(mine):
            return "a name or number is missing"
        if language.names_and_numbers(said) - set(theirs):
            return "a name or number that the sentence does not have"
        there = set(language.stems(theirs))
        content = language.content_words(said)
        plain = language.stems(w for w in content if w not in kept)
        if not plain or sum(w not in there for w in plain) < self.new * len(plain):
            return "not in other words"
        if sum(w in there for w in language.stems(content)) < self.common * len(content):
            return "not about the sentence"
        return ""

    def render(self, content: dict[str, Any]) -> str:
        return f" {content['paraphrase']}"

    def is_empty(self, content: dict[str, Any]) -> bool:
        return False

    def given(self, reference: dict[str, Any]) -> str | None:
        return ""

    def agreement(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> float | None:
        """Mean F1 of words: low even for good paraphrases that differ, so to be compared between students only."""
        return mean_word_f1(pairs, "paraphrase", self._language)

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        yield Trait("words of the paraphrase", len(content["paraphrase"].split()))
