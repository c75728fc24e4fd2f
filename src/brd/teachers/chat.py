"""A prompt as one user message of a chat template, split so that all before the sentence is still shared."""

from collections.abc import Callable

from brd.errors import BrdError

# Stands in for the suffix while the template is filled in; no template or tokenizer has a meaning for it.
_MARK = "\u2063suffix\u2063"


def split(prefix: str, render: Callable[[list[dict[str, str]]], str]) -> tuple[str, str]:
    """What stands before a suffix and what stands after it when ``prefix + suffix`` is a user message.

    ``render`` fills in the template, ready for the answer. Raises BrdError when the template changes messages.
    """
    before, mark, after = render([{"role": "user", "content": prefix + _MARK}]).partition(_MARK)
    if not mark or _MARK in after:
        raise BrdError("teacher.chat_template: this model's template does not show a message as it is; set it to false")
    return before, after
