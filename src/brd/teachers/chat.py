"""Few-shot prompts as a conversation: the task is the system's message, each exemplar a question and its answer.

A raw few-shot prompt (``prefix + suffix``) consists of blocks between blank lines: the task, then exemplars of which
the first line is what is given and the rest is the answer. In a conversation the given lines are the user's, the
answers the assistant's; what follows the first line of a suffix (the cue) is the beginning of the assistant's answer.
All before the sentence is the same for all sentences, so it is still shared.
"""

from collections.abc import Callable

from brd.errors import BrdError

Message = dict[str, str]
Render = Callable[[list[Message]], str]
"""Fills in a chat template, ready for the assistant's answer."""

# Stands in for the sentence while the template is filled in; no template or tokenizer has a meaning for it.
_MARK = "\u2063suffix\u2063"


def split(prefix: str, render: Render) -> tuple[str, Callable[[str], str]]:
    """What stands before a suffix, and what a suffix becomes (the given line, the template's words, the cue).

    Raises BrdError when the template changes messages.
    """
    try:
        text = render(conversation(prefix)(_MARK))
    except Exception:
        text = render(conversation(prefix, system=False)(_MARK))
    before, mark, after = text.partition(_MARK)
    if not mark or _MARK in after:
        raise BrdError("teacher.chat_template: this model's template does not show a message as it is; set it to false")

    def turn(suffix: str) -> str:
        given, _, cue = suffix.partition("\n")
        return given + after + cue

    return before, turn


def conversation(prefix: str, *, system: bool = True) -> Callable[[str], list[Message]]:
    """The messages up to one that is given. Some templates have no ``system``; the task then stands before the first
    thing that is given."""
    task, turns = _turns(prefix)

    def messages(given: str) -> list[Message]:
        asked = [*turns, {"role": "user", "content": given}]
        if not task:
            return asked
        if system:
            return [{"role": "system", "content": task}, *asked]
        return [{**asked[0], "content": f"{task}\n\n{asked[0]['content']}"}, *asked[1:]]

    return messages


def _turns(prefix: str) -> tuple[str, list[Message]]:
    """The task, and the exemplars as messages."""
    task: list[str] = []
    turns: list[Message] = []
    for block in filter(None, (block.strip("\n") for block in prefix.split("\n\n"))):
        given, line_break, answer = block.partition("\n")
        if line_break:
            turns += [{"role": "user", "content": given}, {"role": "assistant", "content": answer}]
        else:
            task.append(block)
    return "\n\n".join(task), turns
