"""Implication: a claim that follows from the sentence, and one that does not (ours, not the paper's)."""

from collections.abc import Iterator, Sequence
from typing import Any

from brd.reading.behavior import Judgement, Trait, few_shot, judged, malformed, sentence_and_cue
from brd.reading.languages import Language, leaves_out, mean_word_f1, words


class Implication:
    """Two lines: ``Follows: The ferry was late.`` and ``Does not follow: Nobody took the ferry.``

    Verified by form: whether a claim follows is the teacher's word, which no list of words can check.
    """

    name = "implication"
    skill = "implication_f1"
    cue = "Follows:"
    other_cue = "Does not follow:"
    stop: tuple[str, ...] = ("\n\n",)
    max_new_tokens = 72
    # Shares of a claim's content words that are the sentence's: what follows says little else, what does not must be
    # about the same at least.
    grounded, about = 0.5, 0.25

    def __init__(self, exemplars: dict[str, Any], language: Language) -> None:
        self._language = language
        self.prefix = few_shot(self, exemplars["task"], [(e["sentence"], e) for e in exemplars["exemplars"]])

    def suffix(self, sentence: str) -> str:
        return sentence_and_cue(sentence, self.cue)

    def parse(self, raw: str) -> dict[str, Any] | None:
        lines = raw.strip().split("\n")
        if len(lines) != 2 or not lines[1].startswith(self.other_cue):
            return None
        follows, other = lines[0].strip(), lines[1].removeprefix(self.other_cue).strip()
        return {"follows": follows, "does_not_follow": other} if follows and other else None

    def judge(self, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        parsed = self.parse(raw)
        if parsed is None or not finished:
            return malformed(finished, "claim / Does not follow: claim")
        return judged(parsed, self._flaw(parsed["follows"], parsed["does_not_follow"], sentence))

    def _flaw(self, follows: str, other: str, sentence: str) -> str:
        language, there = self._language, self._plain(sentence)
        if words(follows) == words(other):
            return "both claims are the same"
        for which, claim, least in (("follows", follows, self.grounded), ("does not follow", other, self.about)):
            said = self._plain(claim)
            if len(words(claim)) < 3 or not language.content_words(claim):
                return f"what {which} is no claim"
            if claim.endswith("?"):
                return f"what {which} is a question"
            # "The ferry was late" of "The last ferry was late" says nothing new, and mostly follows.
            if leaves_out(said, there) or leaves_out(there, said):
                return f"what {which} repeats the sentence"
            if language.grounded_share(claim, sentence) < least:
                return f"what {which} is not about the sentence"
        if language.names_and_numbers(follows) - set(there):
            return "what follows has a name or number that the sentence does not have"
        return ""

    def _plain(self, text: str) -> list[str]:
        return [word for word in words(text) if word not in self._language.articles]

    def render(self, content: dict[str, Any]) -> str:
        return f" {content['follows']}\n{self.other_cue} {content['does_not_follow']}"

    def is_empty(self, content: dict[str, Any]) -> bool:
        return False

    def given(self, reference: dict[str, Any]) -> str | None:
        return ""

    def agreement(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> float | None:
        """Mean F1 of the words of what follows."""
        return mean_word_f1(pairs, "follows", self._language)

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        yield Trait("words of what follows", len(content["follows"].split()))
        yield Trait("words of what does not follow", len(content["does_not_follow"].split()))
