"""Few-shot prompts as turns of a conversation."""

from collections.abc import Callable
from typing import Any

import pytest

from brd.errors import BrdError
from brd.reading.behavior import load_behaviors
from brd.teachers import chat

Message = dict[str, str]


def rendered(messages: list[Message]) -> str:
    return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"


def without_system(messages: list[Message]) -> str:
    if messages[0]["role"] == "system":
        raise ValueError("System role not supported")
    return rendered(messages)


@pytest.mark.parametrize("name", ["ner", "qra"])
@pytest.mark.parametrize("exemplars", ["plain", "instruct"])
def test_exemplars_become_turns_and_the_cue_begins_the_answer(name: str, exemplars: str) -> None:
    behavior = load_behaviors([name], exemplars)[name]
    before, turn = chat.split(behavior.prefix, rendered)
    task, *blocks = behavior.prefix.strip().split("\n\n")
    assert before.startswith(f"<system>{task}</><user>Sentence: ")
    assert before.count("<user>") == len(blocks) + 1
    assert before.count(f"<assistant>{behavior.cue} ") == len(blocks)
    assert before.endswith("</><user>")
    assert turn(behavior.suffix("It rained.")) == f"Sentence: It rained.</><assistant>{behavior.cue}"


def test_a_question_that_is_given_stands_in_the_answer() -> None:
    behavior = load_behaviors(["qra"])["qra"]
    _, turn = chat.split(behavior.prefix, rendered)
    asked = turn(behavior.suffix("It rained.") + " What fell?\nAnswer:")
    assert asked == "Sentence: It rained.</><assistant>Question: What fell?\nAnswer:"


def test_templates_without_a_system_get_the_task_in_the_first_turn() -> None:
    before, turn = chat.split("Do this.\n\nSentence: A.\nEntities: none\n\n", without_system)
    assert before == "<user>Do this.\n\nSentence: A.</><assistant>Entities: none</><user>"
    assert turn("just a question") == "just a question</><assistant>"
    assert chat.split("Do this. ", without_system)[0] == "<user>Do this. \n\n"


@pytest.mark.parametrize("template", [lambda messages: "fixed", lambda messages: str(messages).upper()])
def test_templates_that_change_messages_are_refused(template: Callable[[Any], str]) -> None:
    with pytest.raises(BrdError, match="does not show a message as it is"):
        chat.split("Do this.\n\n", template if template([]) == "fixed" else lambda m: rendered(m).replace("\u2063", ""))
