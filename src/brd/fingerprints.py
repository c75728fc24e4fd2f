"""What tells whether a step is current: a hash of all that can change its outcome."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brd.embedded import file_sha256
from brd.experiment import REFERENCE, TASK_DATA, TEACHER, reads
from brd.experiment import arm as arm_of
from brd.reading.behavior import behaviors_of, is_own, prompts
from brd.recipe import Recipe, changed
from brd.recipe_corpus import corpus_parts
from brd.run import fingerprint
from brd.training.origin import DESCRIBING, read_origin


class Fingerprints:
    """Those of a recipe's steps, by arm where each has its own. Each holds those of the steps that it rests on."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._read: str | None = None

    def read(self) -> str:
        if self._read is None:
            from brd.reading import own_behavior

            recipe = self._recipe
            own = {Path(name).stem: own_behavior.stamp(Path(name)) for name in filter(is_own, recipe.reading.behaviors)}
            self._read = fingerprint(
                "read",
                *corpus_parts(recipe),
                recipe.reading.asking(),
                recipe.teacher.answering(),
                # A model elsewhere is no file here, whatever its name.
                [] if recipe.teacher.named else _model_stamp(recipe.teacher.model),
                prompts(behaviors_of(recipe.reading)),
                *([own] if own else []),
            )
        return self._read

    def compose(self, arm: str) -> str:
        recipe, data = self._of(arm), arm_of(self._recipe, arm).data
        best_fit = recipe.composing.packing == "best_fit"
        composing = recipe.composing.model_dump(exclude=None if best_fit else {"packing"})
        student = [recipe.student.model, _model_stamp(recipe.student.model)]
        parts: list[Any] = [data, composing, student, recipe.seed]
        if data != "lessons":
            parts += [self.compose(REFERENCE), recipe.training.epochs, recipe.training.rows_per_step]
        elif best_fit and arm != REFERENCE:
            # Its rows are no fuller than the reference's.
            parts.append(self.compose(REFERENCE))
        if data == "continuations":
            parts += [recipe.distillation.prompt_tokens, recipe.distillation.new_tokens]
        if data in TASK_DATA:
            from brd.recipe_tasks import task_parts

            parts += task_parts(recipe, data)
        return fingerprint("compose", self.read(), *parts)

    def heal(self) -> str:
        recipe = self._recipe
        return fingerprint(
            *("heal", self._start(), recipe.healing, *corpus_parts(recipe)),
            recipe.composing.row_tokens,
            recipe.training.model_dump(include={"weight_decay", "rows_per_step", "micro_rows", "dtype", "compile"}),
            recipe.seed,
        )

    def layers(self) -> str:
        """Of the choice of the layers that are kept."""
        return fingerprint("layers", self._start())

    def train(self, arm: str) -> str:
        recipe, about = self._of(arm), arm_of(self._recipe, arm)
        start = [self.heal()] if recipe.healing else self._start()
        if about.after is not None:
            start = [self.train(about.after)]
        if about.data == "none":
            return fingerprint("start", start, self._recipe.seed if recipe.composing.separator_as_token else None)
        training = recipe.training.deciding()
        parts: list[Any] = [self.compose(arm), self.compose(REFERENCE), training, recipe.seed]
        if recipe.student.lora:
            parts += [recipe.student.lora.model_dump()]
        if (objective := recipe.training.objective) != "lm":
            teacher = recipe.distillation.teacher_model or recipe.teacher.model
            parts += [recipe.distillation.deciding(objective), teacher, _model_stamp(teacher)]
        return fingerprint("train", start, *parts)

    def skill(self, arm: str) -> str:
        recipe, evaluation = self._recipe, self._recipe.evaluation
        keys = {"dtype", "reading_sentences", "reading_prompted", "gold_limit"}
        gold = (evaluation.gold_entities, evaluation.gold_answers)
        settings = [
            evaluation.model_dump(include=keys),
            *(file_sha256(Path(name)) if name and Path(name).is_file() else name for name in gold),
        ]
        how = [recipe.composing.separator, recipe.composing.level]
        who = recipe.teacher.answering() if arm == TEACHER else self.train(arm)
        return fingerprint("skill", who, self.read(), settings, how)

    def evaluate(self, arm: str) -> str:
        from brd.evaluation.records import stamp
        from brd.evaluation.tasks import load_task

        recipe = self._recipe
        tasks = [(task.model_dump(), stamp(task.source)) for task in map(load_task, recipe.evaluation.tasks)]
        settings = recipe.evaluation.model_dump(exclude={"batch_tokens", "cache", "reading_arms"})
        who = self.skill(arm) if reads(recipe, arm) else ["no reading", self.train(arm)]
        return fingerprint("evaluate", who, tasks, settings)

    def report(self, evaluated: Sequence[str], gold: Any) -> str:
        """Of the page about these; ``gold`` are figures of the teacher that it may hold too."""
        prints = {arm: self.evaluate(arm) for arm in evaluated}
        return fingerprint("report", prints, self._recipe.name, *([gold] if gold else []))

    def _of(self, arm: str) -> Recipe:
        return changed(self._recipe, arm_of(self._recipe, arm).overrides)

    def _start(self) -> list[Any]:
        recipe = self._recipe
        separator = recipe.composing.separator if recipe.composing.separator_as_token else None
        parts: list[Any] = [recipe.student.starting(), _model_stamp(recipe.student.model), separator]
        if recipe.student.keep_layers is not None:
            # What they are measured on, and how.
            parts += [*corpus_parts(recipe), recipe.composing.row_tokens, recipe.training.dtype]
        return parts


def _model_stamp(name: str) -> list[Any]:
    """What tells a local model from a changed one without reading it: names, sizes and times of its files."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.glob("*")) if path.is_absolute() and path.is_dir() else []
    # A student of another run is the same whatever its card says.
    left_out = DESCRIBING if read_origin(path) else ()
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file() and f.name not in left_out]
