"""QRA: a question about the sentence's content, structure or attitude, and its answer (paper, basic behaviors)."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from brd.reading.behavior import Judgement, Trait, few_shot, judged, malformed, sentence_and_cue
from brd.reading.languages import Language, mean_word_f1, words


class QuestionAndAnswer:
    """Two lines: ``Question: Why did the ferry stop?`` and ``Answer: The wind was too strong.``"""

    name = "qra"
    skill = "answer_f1"
    cue = "Question:"
    answer_cue = "Answer:"
    stop: tuple[str, ...] = ("\n\n",)
    max_new_tokens = 72
    # An answer may put things in its own words a little: at least this share of its content words is the sentence's.
    grounded = 0.75

    def __init__(self, exemplars: dict[str, Any], language: Language) -> None:
        self._language = language
        because = "|".join(sorted(language.because))
        self._reason = re.compile(rf"^(?P<verdict>\w+)\W+(?:{because})\b(?P<reason>.+)$", re.IGNORECASE | re.DOTALL)
        self.prefix = few_shot(self, exemplars["task"], [(e["sentence"], e) for e in exemplars["exemplars"]])

    def suffix(self, sentence: str) -> str:
        return sentence_and_cue(sentence, self.cue)

    def parse(self, raw: str) -> dict[str, Any] | None:
        lines = raw.strip().split("\n")
        if len(lines) != 2 or not lines[1].startswith(self.answer_cue):
            return None
        question, answer = lines[0].strip(), lines[1].removeprefix(self.answer_cue).strip()
        return {"question": question, "answer": answer} if question and answer else None

    def judge(self, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        parsed = self.parse(raw)
        if parsed is None or not finished:
            return malformed(finished, "question / Answer: answer")
        return judged(parsed, self._flaw(parsed["question"], parsed["answer"], sentence))

    def _flaw(self, question: str, answer: str, sentence: str) -> str:
        if not question.endswith("?") or len(words(question)) < 3:
            return "question does not end as one"
        language = self._language
        asked, there = language.stems(language.content_words(question)), set(language.stems(words(sentence)))
        if not any(stem in language.framing or stem in there for stem in asked):
            return "question not about the sentence"
        first = (words(answer) or [""])[0]
        if first in language.verdicts:
            match = self._reason.match(answer)
            if not match or not language.content_words(match["reason"]):
                return "yes, no or an attitude without its reason"
            answer = match["reason"]
        elif not words(answer):
            return "answer without words"
        elif language.content_words(answer) and language.grounded_share(answer, question) == 1:
            return "answer repeats the question"
        if language.grounded_share(answer, sentence, language.framing) < self.grounded:
            return "answer not in the sentence"
        return ""

    def render(self, content: dict[str, Any]) -> str:
        return f" {content['question']}\n{self.answer_cue} {content['answer']}"

    def is_empty(self, content: dict[str, Any]) -> bool:
        return False

    def given(self, reference: dict[str, Any]) -> str | None:
        return f" {reference['question']}\n{self.answer_cue}"

    def agreement(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> float | None:
        """Mean F1 of the answers' words with the teacher's question given, as in SQuAD (articles left out)."""
        return mean_word_f1(pairs, "answer", self._language)

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        question, answer = content["question"], content["answer"]
        yield Trait("question begins with", self._beginning(question), question)
        yield Trait("question is about", self._about(question))
        yield Trait("words of the question", len(question.split()))
        yield Trait("words of the answer", len(answer.split()))

    def _beginning(self, question: str) -> str:
        """The word that says what is asked for; ``yes or no`` for what begins as such questions do."""
        language = self._language
        first, second, *_ = [*words(question)[:2], "", ""]
        if second in language.question_measures.get(first, ()):
            return f"{first} {second}"
        if first in language.question_words:
            return first
        if first in language.auxiliaries:
            return "yes or no"
        # "In which year", "To whom".
        return second if second in language.question_words else "other words"

    def _about(self, question: str) -> str:
        found = set(self._language.stems(self._language.content_words(question)))
        return next((about for about, stems in self._language.about.items() if found & stems), "content")
