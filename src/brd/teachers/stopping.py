"""When a greedy answer ends: a stop string, an end-of-text token, or the length limit."""

from collections.abc import Collection, Sequence
from typing import Any


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: what the model's generation configuration names, and the tokenizer's special tokens.

    Chat models have several ends (of a turn, of a text) of which a configuration often names one; and no special token
    has a place inside a reading.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id, *special}
    return frozenset(i for i in ids if i is not None)


class StopRule:
    """Decides after each new token whether an answer has ended.

    The text of an ended answer stops before the earliest stop string, also when that begins inside a token.
    Special tokens do not show in the text. The whole answer is decoded only when its newest token could complete a
    stop string (it holds the string's last character), which is looked up once for each token of the vocabulary.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], ends: Collection[int], max_new_tokens: int) -> None:
        if not all(stop):
            raise ValueError("a stop string is empty")
        self._tokenizer, self._stop, self._ends, self._limit = tokenizer, stop, ends, max_new_tokens
        self._completes: dict[int, bool] = {}

    def ended(self, tokens: Sequence[int]) -> tuple[str, bool] | None:
        """``(text, finished)`` of an answer that ends with the last of ``tokens``, or None when it goes on.

        Has to be asked after every token. ``finished`` is False where only the length limit ended it.
        """
        newest = tokens[-1]
        at_end, at_limit = newest in self._ends, len(tokens) >= self._limit
        if not (at_end or at_limit or self._may_complete(newest)):
            return None
        text = self._text(tokens[:-1] if at_end else tokens)
        found = [place for place in (text.find(s) for s in self._stop) if place >= 0]
        if found:
            return text[: min(found)], True
        return (text, at_end) if at_end or at_limit else None

    def _may_complete(self, token: int) -> bool:
        known = self._completes.get(token)
        if known is None:
            # Twice, since some tokenizers drop the space in front of the first token. A piece of a character
            # decodes to U+FFFD and could be the end of anything beyond ASCII.
            text = self._text([token, token])
            known = any(s[-1] in text or ("\ufffd" in text and not s[-1].isascii()) for s in self._stop)
            self._completes[token] = known
        return known

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
