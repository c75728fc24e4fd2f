"""QRA: a question about the sentence's content, structure or attitude, and its answer (paper, basic behaviors)."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from brd.reading.behavior import Judgement, Trait, content_words, exemplars, grounded_share, one_line, stem, words

# Words of the talk about sentences: an answer about structure or attitude needs them and no sentence holds them.
_FRAMING = frozenset(
    stem(w)
    for w in """positive negative neutral mixed contrast contrasts compare compares comparison reason cause effect
    result example list order first second sentence writer speaker author feeling feels attitude opinion praise
    praises critical approval doubt doubtful says mentions describes states called explains gives shows""".split()
)
# What a question is about, as far as its words show (English); all others are about the content.
_ABOUT = {
    "attitude": """positive negative neutral mixed feeling feelings feel feels attitude opinion praise praises critical
    approve approval doubt doubtful""",
    "structure": "contrast contrasts contrasted compare compares compared comparison reason cause list example",
}
_STEMS = {about: frozenset(map(stem, found.split())) for about, found in _ABOUT.items()}
_QUESTION_WORDS = ("what", "who", "whom", "whose", "which", "when", "where", "why", "how")
_AUXILIARIES = frozenset(
    """is are was were am be do does did has have had can could will would shall should may might must isn't aren't
    wasn't weren't don't doesn't didn't hasn't haven't hadn't can't couldn't won't wouldn't shouldn't""".split()
)
_VERDICT_WORDS = ("yes", "no", "positive", "negative", "neutral", "mixed")
_REASON = re.compile(r"^(?P<verdict>\w+)\W+(?:because|since|as)\b(?P<reason>.+)$", re.IGNORECASE | re.DOTALL)


class QuestionAndAnswer:
    """Two lines: ``Question: Why did the ferry stop?`` and ``Answer: The wind was too strong.``"""

    name = "qra"
    skill = "answer_f1"
    cue = "Question:"
    answer_cue = "Answer:"
    stop = ("\n\n",)
    max_new_tokens = 72
    # An answer may put things in its own words a little: at least this share of its content words is the sentence's.
    grounded = 0.75

    def __init__(self, exemplar_set: str = "plain") -> None:
        data = exemplars(self.name, exemplar_set)
        shown = [self.suffix(e["sentence"]) + self.render(e) for e in data["exemplars"]]
        self.prefix = "\n\n".join([one_line(data["task"]), *shown]) + "\n\n"

    def suffix(self, sentence: str) -> str:
        return f"Sentence: {one_line(sentence)}\n{self.cue}"

    def parse(self, raw: str) -> dict[str, Any] | None:
        lines = raw.strip().split("\n")
        if len(lines) != 2 or not lines[1].startswith(self.answer_cue):
            return None
        question, answer = lines[0].strip(), lines[1].removeprefix(self.answer_cue).strip()
        return {"question": question, "answer": answer} if question and answer else None

    def judge(self, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        parsed = self.parse(raw)
        if parsed is None or not finished:
            reason = "cut off before its end" if not finished else "not of the form 'question / Answer: answer'"
            return Judgement("malformed", reason, None, 0, 0)
        reason = self._flaw(parsed["question"], parsed["answer"], sentence)
        if reason:
            return Judgement("rejected", reason, parsed, 1, 0)
        return Judgement("verified", "", parsed, 1, 1)

    def _flaw(self, question: str, answer: str, sentence: str) -> str:
        if not question.endswith("?") or len(words(question)) < 3:
            return "question does not end as one"
        about_form = any(stem(w) in _FRAMING for w in content_words(question))
        if not about_form and not any(grounded_share(w, sentence) for w in content_words(question)):
            return "question not about the sentence"
        first = (words(answer) or [""])[0]
        if first in _VERDICT_WORDS:
            match = _REASON.match(answer)
            if not match or not content_words(match["reason"]):
                return "yes, no or an attitude without its reason"
            answer = match["reason"]
        elif not words(answer):
            return "answer without words"
        elif content_words(answer) and grounded_share(answer, question) == 1:
            return "answer repeats the question"
        if grounded_share(answer, sentence, _FRAMING) < self.grounded:
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
        scores = [word_f1(raw.strip().split("\n")[0], reference["answer"]) for raw, reference in pairs]
        return sum(scores) / len(scores) if scores else None

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        question, answer = content["question"], content["answer"]
        yield Trait("question begins with", _beginning(question), question)
        yield Trait("question is about", _about(question))
        yield Trait("words of the question", len(question.split()))
        yield Trait("words of the answer", len(answer.split()))


def _beginning(question: str) -> str:
    """The word that says what is asked for (English); ``yes or no`` for what begins as such questions do."""
    first, second, *_ = [*words(question)[:2], "", ""]
    if first == "how" and second in ("many", "much", "long", "often", "far", "old"):
        return f"how {second}"
    if first in _QUESTION_WORDS:
        return first
    if first in _AUXILIARIES:
        return "yes or no"
    # "In which year", "To whom".
    return second if second in _QUESTION_WORDS else "other words"


def _about(question: str) -> str:
    found = {stem(word) for word in content_words(question)}
    return next((about for about, stems in _STEMS.items() if found & stems), "content")


def word_f1(answer: str, reference: str) -> float:
    """F1 of two answers as bags of words, without articles."""
    a, b = (Counter(w for w in words(text) if w not in ("a", "an", "the")) for text in (answer, reference))
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0
