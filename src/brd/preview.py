"""``brd preview``: a few sentences with their readings, in colour."""

from rich.console import Console
from rich.text import Text

from brd.reading.behavior import Judgement, load_behaviors, one_line
from brd.reading.reader import choose
from brd.recipe import Recipe, changed
from brd.recipe_corpus import open_corpus
from brd.teachers import open_teacher

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
    sentences: list[str] = []
    for paragraph in choose(recipe, Counter(), open_corpus(recipe)):
        if paragraph.readable and not paragraph.held_out:
            sentences.append(paragraph.sentence(paragraph.readable[0]))
        if len(sentences) == n:
            break
    teacher = open_teacher(recipe.teacher)
    out = Console(highlight=False)
    try:
        judged: dict[str, list[tuple[str, Judgement]]] = {}
        for name, behavior in load_behaviors(recipe.reading.behaviors, recipe.reading.exemplars).items():
            found: dict[int, tuple[str, Judgement]] = {}
            for index, answer in teacher.answer(
                behavior.prefix,
                [behavior.suffix(s) for s in sentences],
                stop=behavior.stop,
                max_new_tokens=min(behavior.max_new_tokens, recipe.teacher.max_new_tokens),
            ):
                judgement = behavior.judge(
                    answer.text,
                    sentences[index],
                    finished=answer.finished,
                    drop_bad_parts=recipe.reading.drop_bad_entities,
                )
                found[index] = (answer.text, judgement)
            judged[name] = [found[i] for i in range(len(sentences))]
            for number, sentence in enumerate(sentences):
                raw, judgement = judged[name][number]
                out.print(_coloured(one_line(sentence), judgement))
                line = Text(f"  {behavior.cue}", style="dim")
                line.append(" " + one_line(raw))
                line.append(f"  [{judgement.verdict}", style=VERDICTS[judgement.verdict])
                line.append(f": {judgement.reason}]" if judgement.reason else "]", style=VERDICTS[judgement.verdict])
                out.print(line)
    finally:
        teacher.close()


def _coloured(sentence: str, judgement: Judgement) -> Text:
    text = Text(sentence)
    if judgement.content:
        for entity in judgement.content.get("entities", []):
            if "start" in entity:
                text.stylize(COLOURS.get(entity["type"], "bold cyan"), entity["start"], entity["end"])
    return text
