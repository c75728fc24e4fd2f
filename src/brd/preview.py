"""``brd preview``: a few sentences with their readings, in colour."""

from rich.console import Console
from rich.text import Text

from brd.reading.behavior import Behavior, Judgement, behaviors_of, one_line
from brd.reading.chosen import choose
from brd.recipe import Recipe, changed
from brd.recipe_corpus import open_corpus
from brd.recipe_teacher import settled
from brd.teachers import open_teacher
from brd.teachers.teacher import Teacher

COLOURS = {
    "person": "bold magenta",
    "organization": "bold blue",
    "location": "bold green",
    "date": "bold yellow",
}
VERDICTS = {"verified": "green", "rejected": "red", "malformed": "red"}


def show(recipe: Recipe, n: int) -> None:
    """Read the first sentences of the first paragraphs, one of each, and print them; nothing is stored."""
    from collections import Counter

    recipe = changed(recipe, {"reading.sentences": max(n * 20, 200)})
    found: list[tuple[str, str]] = []
    for paragraph in choose(recipe, Counter(), open_corpus(recipe)):
        if paragraph.readable and not paragraph.held_out:
            found.append((paragraph.sentence(paragraph.readable[0]), paragraph.language))
        if len(found) == n:
            break
    teacher = open_teacher(settled(recipe))
    out = Console(highlight=False)
    try:
        behaviors = behaviors_of(recipe.reading)
        for name in behaviors:
            for code, behavior in behaviors.each(name).items():
                _show(out, recipe, behavior, teacher, [s for s, language in found if code in ("", language)])
    finally:
        teacher.close()


def _show(out: Console, recipe: Recipe, behavior: Behavior, teacher: Teacher, sentences: list[str]) -> None:
    answers = teacher.answer(
        behavior.prefix,
        [behavior.suffix(s) for s in sentences],
        stop=behavior.stop,
        max_new_tokens=min(behavior.max_new_tokens, recipe.teacher.max_new_tokens),
    )
    for index, answer in sorted(answers, key=lambda one: one[0]):
        judgement = behavior.judge(
            answer.text,
            sentences[index],
            finished=answer.finished,
            drop_bad_parts=recipe.reading.drop_bad_entities,
        )
        out.print(_coloured(one_line(sentences[index]), judgement))
        line = Text(f"  {behavior.cue}", style="dim")
        line.append(" " + one_line(answer.text))
        line.append(f"  [{judgement.verdict}", style=VERDICTS[judgement.verdict])
        line.append(f": {judgement.reason}]" if judgement.reason else "]", style=VERDICTS[judgement.verdict])
        out.print(line)


def _coloured(sentence: str, judgement: Judgement) -> Text:
    text = Text(sentence)
    if judgement.content:
        for entity in judgement.content.get("entities", []):
            if "start" in entity:
                text.stylize(COLOURS.get(entity["type"], "bold cyan"), entity["start"], entity["end"])
    return text
