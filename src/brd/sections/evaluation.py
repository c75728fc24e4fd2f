"""The section ``evaluation`` of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from brd.sections.section import Dtype, Positive, Section


class Evaluation(Section):
    """Tasks (names of shipped task files, or paths of task files) and the reading skill on held-out text.

    ``templates`` is ``all``, or the name of one; each task's default unless said, as are ``shots`` and ``metric``.
    ``half`` keeps the items of one half by hash: choose on a, report on b. ``reading_arms`` are the arms whose reading
    is tested (null: all). ``cache`` is a folder with item scores, or with folders of them; what is there is not scored
    again. ``gold_entities`` (IOB) and ``gold_answers`` (SQuAD's JSON) are files of human annotations, of which
    ``gold_limit`` sentences and questions are asked, in the first of the languages that are read. ``teacher`` has the
    teacher scored as well, on at most so many items a task. ``leave_out`` names tasks without which the contrasts over
    seeds are told a second time.
    """

    tasks: list[str] = ["sst2", "rte", "cb", "boolq", "piqa"]
    templates: str | None = None
    shots: Annotated[int, Field(ge=0)] | None = None
    metric: Literal["token_mean", "sum", "character_mean", "byte_mean", "pmi"] | None = None
    limit: Positive | None = None
    half: Literal["a", "b"] | None = None
    cache: str | None = None
    batch_tokens: Positive | None = None
    dtype: Dtype = "auto"
    reading_sentences: Positive = 100
    reading_prompted: bool = True
    reading_arms: list[str] | None = None
    gold_entities: str | None = None
    gold_answers: str | None = None
    gold_limit: Positive = 200
    teacher: Positive | None = None
    leave_out: list[str] = []
