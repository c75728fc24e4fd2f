"""The road of the data: read, compose, train, evaluate, report. A step runs only when what it rests on changed."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from brd.console import Console
from brd.errors import BrdError
from brd.experiment import REFERENCE, TASK_DATA, TEACHER, Arm, Data, chain, reads, split_last
from brd.experiment import arm as arm_of
from brd.fingerprints import Fingerprints
from brd.recipe import Recipe, changed
from brd.recipe_corpus import open_corpus
from brd.run import RunFolder, fingerprint, provenance, read_json, write_json
from brd.students import describe, set_aside_card
from brd.summary import composed_lines, evaluation_line, reading_lines
from brd.text.corpus import Corpus

STEPS = ("read", "compose", "train", "evaluate", "report")
# What every arm starts from where the recipe heals the student first.
HEALED = "healed"
# By how much arms may differ in trained tokens where rows end in padding (a share of the most).
SAME_TOKENS = 0.02


class Pipeline:
    """One recipe in one run folder. The methods are the steps; each raises BrdError when what it needs is missing."""

    def __init__(self, recipe: Recipe, run: RunFolder, console: Console) -> None:
        self.recipe, self.run, self.console = recipe, run, console
        self.readings_folder = run.path / "readings"
        self.arms = recipe.arms
        self.trained = [arm for arm in self.arms if self.about(arm).data != "none"]
        # Those that others start from are trained too, before them, and not tested unless they are arms of the recipe.
        self.students = [*dict.fromkeys(name for arm in self.arms for name in chain(arm))]
        lessons = [split_last(name)[1] for name in self.students if self.about(name).data != "none"]
        self.composed = [*dict.fromkeys([REFERENCE, *lessons])] if self.trained else []
        half = recipe.evaluation.half
        self.evaluation_folder = run.path / (f"evaluation_{half}" if half else "evaluation")
        self._evaluate = self.evaluation_folder.name.replace("evaluation", "evaluate")
        prints = Fingerprints(recipe)
        self.read_print, self.heal_print = prints.read, prints.heal
        self.layers_print = prints.layers
        self.compose_print, self.train_print = prints.compose, prints.train
        self.skill_print, self.evaluate_print = prints.skill, prints.evaluate
        self._report_print = prints.report

    def up_to(self, last: str) -> None:
        if STEPS.index(last) >= STEPS.index("compose"):
            self._check_task_data()
        if STEPS.index(last) >= STEPS.index("train"):
            self._check_teachers()
        for step in STEPS[: STEPS.index(last) + 1]:
            getattr(self, step)()

    def about(self, arm: str) -> Arm:
        return arm_of(self.recipe, arm)

    def tokens(self, arm: str) -> Path:
        """The token file of an arm: that of its last part, where it is a chain."""
        return self.run.path / "composed" / split_last(arm)[1]

    def arm_recipe(self, arm: str) -> Recipe:
        return changed(self.recipe, self.about(arm).overrides)

    def student(self, arm: str) -> Path:
        return self.run.path / "students" / arm

    def evaluation_step(self, arm: str) -> str:
        return f"{self._evaluate}.{arm}"

    def report_print(self) -> str:
        # What `brd audit` asked the teacher afterwards stands in the page too.
        return self._report_print(self.evaluated, (read_json(self.run.path / "audit.json") or {}).get("gold"))

    @property
    def evaluated(self) -> list[str]:
        """The arms, and the teacher where the recipe has it scored."""
        return [*self.arms, *([TEACHER] if self.recipe.evaluation.teacher else [])]

    def state(self) -> dict[str, bool]:
        """Which steps are current, without running or loading anything."""
        current, path = self.run.is_current, self.run.path
        state = {"read": current("read", self.read_print(), *self._read_outputs())}
        cut = self.recipe.student.keep_layers is not None
        if cut:
            state["compose.layers"] = current("compose.layers", self.layers_print(), path / "composed" / "layers")
        if self.recipe.healing:
            state["compose.healing"] = current("compose.healing", self.heal_print(), path / "composed" / "healing")
        for arm in self.composed:
            state[f"compose.{arm}"] = current(f"compose.{arm}", self.compose_print(arm), path / "composed" / arm)
        if cut:
            state["train.layers"] = current("train.layers", self.layers_print())
        if self.recipe.healing:
            state["train.healed"] = current("train.healed", self.heal_print(), self.student(HEALED))
        for arm in self.students:
            state[f"train.{arm}"] = current(f"train.{arm}", self.train_print(arm), self.student(arm))
        for arm in self.evaluated:
            out = self.evaluation_folder / f"{arm}.json"
            state[f"{self._evaluate}.{arm}"] = current(f"{self._evaluate}.{arm}", self.evaluate_print(arm), out)
        state["report"] = current("report", self.report_print(), path / "report.html")
        return state

    def _needs(self, step: str, names: list[str]) -> None:
        state = self.state()
        if missing := [name for name in names if not state[name]]:
            raise BrdError(
                f"{self.run.path}: step {missing[0]} has not been run with this recipe; run `brd {step} RECIPE` first, "
                f"or everything with `brd run RECIPE`"
            )

    def _read_outputs(self) -> list[Path]:
        # A shard that was moved away (it was damaged, say) is a reason to read again.
        shards = ((self.run.manifest("read") or {}).get("result") or {}).get("shards", [])
        return [self.readings_folder / name for name in ("paragraphs.parquet", "teacher.json", *shards)]

    # The steps.

    def read(self) -> None:
        """Text to readings."""

        def work() -> dict[str, Any]:
            from brd.reading.known import taken_from
            from brd.reading.reader import funnel, read
            from brd.reading.store import shards
            from brd.recipe_teacher import settled
            from brd.teachers import LazyTeacher

            with open_corpus(self.recipe, self.readings_folder / "dropped.parquet") as corpus:
                asked = self._ask_elsewhere(corpus)
                teacher = LazyTeacher(settled(self.recipe, self.readings_folder, self.console.say))
                try:
                    counts = read(self.recipe, self.readings_folder, teacher, self.console.progress, corpus)
                    about = teacher.identity()
                finally:
                    teacher.close()
            for key, number in asked.items():
                counts[key] += number
                # What was asked a moment ago was not known before.
                if key.endswith("_asked"):
                    counts[key.replace("_asked", "_known_before")] -= number
            if known := taken_from(self.readings_folder):
                self.run.log({"step": "read", "event": "known", "from": known})
            return {
                "counts": dict(counts),
                **corpus.counts(),
                "known_from": known,
                "readings": funnel(self.recipe, self.readings_folder),
                "teacher": about,
                "shards": [shard.name for shard in shards(self.readings_folder)],
            }

        manifest = self.run.do("read", self.read_print(), self._read_outputs(), work, self.console.say)
        for line in reading_lines(manifest["result"]):
            self.console.say(f"  {line}")

    def _ask_elsewhere(self, corpus: Corpus) -> dict[str, int]:
        """Have a cluster, or a provider's batches, answer what is not known; counts of the read step."""
        if self.recipe.teacher.kind == "vllm":
            from brd.reading import shards

            return shards.read_recipe(self.recipe, self.run.path, self.console.progress, corpus)
        if self.recipe.teacher.kind == "openai" and self.recipe.teacher.server.batch:
            from brd.reading import batches

            return batches.read_recipe(self.recipe, self.run.path, self.console.progress, corpus)
        return {}

    def compose(self) -> None:
        """Readings to token files."""
        self._needs("read", ["read"])
        if self.recipe.student.keep_layers is not None:
            self._compose_layers()
        if self.recipe.healing:
            self._compose_healing()
        if not self.composed:
            return
        readings: Any = None
        for arm in self.composed:
            folder = self.run.path / "composed" / arm

            def work(arm: str = arm, folder: Path = folder) -> dict[str, Any]:
                nonlocal readings
                from brd.composing.compose import compose, steps_for
                from brd.reading.reader import Readings
                from brd.training.student import student_tokenizer

                readings = readings or Readings(self.recipe, self.readings_folder)
                recipe, data = self.arm_recipe(arm), self.about(arm).data
                rows, fill = 0, 1.0
                if arm != REFERENCE and recipe.composing.packing == "best_fit":
                    fill = self._fill()
                if data != "lessons":
                    # As many as there are lessons, so that a seed draws its share of them as it does of lessons.
                    rows = max(self._rows(), steps_for(self._rows(), recipe) * recipe.training.rows_per_step)
                more_of = self._more_of(recipe, data)
                with open_corpus(recipe, folder.with_name(f"{arm}.dropped.parquet")) as corpus, more_of as more:
                    meta = compose(recipe, data, readings, student_tokenizer(recipe), folder, rows, corpus, fill, more)
                return {**meta, **corpus.counts()}

            manifest = self.run.do(f"compose.{arm}", self.compose_print(arm), [folder], work, self.console.say)
            for line in composed_lines(arm, manifest["result"]):
                self.console.say(f"  {line}")

    def _more_of(self, recipe: Recipe, data: Data) -> AbstractContextManager[Any]:
        """The teacher and task inputs, for an arm that takes them."""
        if data not in (*TASK_DATA, "continuations"):
            return nullcontext()
        from brd.recipe_tasks import more_of

        return more_of(recipe, data, self.run.path, self.console.progress)

    def _compose_healing(self) -> None:
        folder = self.run.path / "composed" / "healing"

        def work() -> dict[str, Any]:
            from brd.composing.compose import compose_healing
            from brd.training.student import student_tokenizer

            with open_corpus(self.recipe, folder.with_name("healing.dropped.parquet")) as corpus:
                meta = compose_healing(self.recipe, student_tokenizer(self.recipe), folder, corpus)
            return {**meta, **corpus.counts()}

        self.run.do("compose.healing", self.heal_print(), [folder], work, self.console.say)

    def _compose_layers(self) -> None:
        folder = self.run.path / "composed" / "layers"

        def work() -> dict[str, Any]:
            from brd.composing.compose import compose_held_out, held_out_texts
            from brd.training.student import student_tokenizer

            with open_corpus(self.recipe) as corpus:
                texts = held_out_texts(self.recipe, corpus)
                return compose_held_out(self.recipe, texts, student_tokenizer(self.recipe), folder)

        self.run.do("compose.layers", self.layers_print(), [folder], work, self.console.say)

    def _rows(self) -> int:
        meta = read_json(self.run.path / "composed" / REFERENCE / "meta.json")
        return int(meta["rows"])

    def _fill(self) -> float:
        """The share of a row of the reference arm that is no padding."""
        meta = read_json(self.run.path / "composed" / REFERENCE / "meta.json")
        return float(meta["tokens"] / (meta["rows"] * meta["row_tokens"]))

    def _check_tokens(self) -> None:
        """BrdError, before any arm is trained, when arms would train on clearly different numbers of tokens."""
        from brd.composing.compose import steps_for
        from brd.composing.packing import TokenRows
        from brd.training.documents import trained_tokens
        from brd.training.trainer import row_order

        tokens: dict[str, int] = {}
        for arm in self.trained:
            if not self._trains_otherwise(arm):
                recipe = self.arm_recipe(arm)
                rows = TokenRows(self.run.path / "composed" / arm)
                total = steps_for(self._rows(), recipe) * recipe.training.rows_per_step
                tokens[arm] = trained_tokens(rows, row_order(len(rows), total, recipe.seed))
        if _apart(tokens) > SAME_TOKENS:
            raise BrdError(
                f"composing.packing: the arms' documents fill rows so differently that they would train on different "
                f"numbers of tokens in the same steps ({tokens}); use longer rows (composing.row_tokens), or "
                "composing.packing: stream"
            )

    def _trains_otherwise(self, arm: str) -> bool:
        changes = self.about(arm).overrides.keys() - {"training.objective"}
        return any(key.startswith("training.") for key in changes)

    def train(self) -> None:
        """Token files to students."""
        healing = ["healing"] if self.recipe.healing else []
        layers = ["layers"] if self.recipe.student.keep_layers is not None else []
        self._needs("compose", [f"compose.{arm}" for arm in [*layers, *healing, *self.composed]])
        if layers:
            self._measure_layers()
        best_fit = self.recipe.composing.packing == "best_fit"
        if best_fit:
            self._check_tokens()
        if self.recipe.healing:
            self._heal()
        tokens: dict[str, int] = {}
        dtypes: dict[str, str] = {}
        for arm in self.students:
            folder = self.student(arm)

            def work(arm: str = arm, folder: Path = folder) -> dict[str, Any]:
                from brd.composing.compose import steps_for
                from brd.training import launch
                from brd.training.student import load_student, student_tokenizer
                from brd.training.trainer import save

                set_aside_card(folder)
                recipe, about = self._cut(self.arm_recipe(arm)), self.about(arm)
                tokenizer = student_tokenizer(recipe)
                start = self.student(HEALED) if recipe.healing else None
                if about.after is not None:
                    start = self.student(about.after)
                if about.data == "none":
                    save(load_student(recipe, tokenizer, start), tokenizer, folder)
                    return {"steps": 0, "trained_tokens": 0, "passes": 0.0, "losses": []}
                steps = steps_for(self._rows(), recipe)
                task = {
                    "recipe": recipe,
                    "tokens": self.tokens(arm),
                    "steps": steps,
                    "tokenizer": tokenizer,
                    "folder": folder,
                    "start": start,
                    "mark": self.train_print(arm),
                    "held_out": self._held_out(recipe, tokenizer),
                    "keep_checkpoints": True,
                    "method": self._method(recipe, self.tokens(arm), tokenizer),
                }
                told = {
                    "on_step": lambda step, loss: self._on_step(arm, steps, step, loss),
                    "on_held_out": lambda step, loss: self._log_training(arm, step, held_out_loss=loss),
                }
                result: dict[str, Any] = launch.run(
                    recipe.training, "brd.training.trainer:train", task, told, folder.with_name(f"{arm}.process")
                )
                return result

            manifest = self.run.do(f"train.{arm}", self.train_print(arm), [folder], work, self.console.say)
            describe(self, arm)
            shutil.rmtree(folder.with_name(f"{arm}.checkpoints"), ignore_errors=True)
            if self.about(arm).data != "none":
                result = manifest["result"]
                dtypes[arm] = result["dtype"]
                if not self._trains_otherwise(arm):
                    tokens[arm] = result["trained_tokens"]
                self.console.say(
                    f"  {arm}: {result['steps']} steps, {result['trained_tokens']} trained tokens, "
                    f"{result['passes']:.2f} passes over its text"
                )
        if len(set(dtypes.values())) > 1:
            raise BrdError(f"the arms were trained in different dtypes: {dtypes}; name one in training.dtype")
        if _apart(tokens) > (SAME_TOKENS if best_fit else 0):
            raise BrdError(f"the arms trained on different numbers of tokens: {tokens}; please report this as a bug")

    def _check_task_data(self) -> None:
        """Before anything is read: whether task inputs are there."""
        for arm in self.composed:
            if (data := self.about(arm).data) in TASK_DATA:
                from brd.recipe_tasks import check_task_data

                check_task_data(self.arm_recipe(arm), labels=data == "labels")

    def _check_teachers(self) -> None:
        """Before hours of reading: whether the teachers of distillation have the student's tokens."""
        recipes = [self.arm_recipe(arm) for arm in self.students if self.about(arm).data != "none"]
        for recipe in recipes:
            if recipe.training.objective != "lm":
                from brd.training.distillation.teacher import check_teacher
                from brd.training.student import student_tokenizer

                check_teacher(recipe, student_tokenizer(recipe))

    def _method(self, recipe: Recipe, tokens: Path, tokenizer: Any) -> Any:
        """How to train by another objective than the plain one; None for that."""
        if recipe.training.objective == "lm":
            return None
        from brd.training.distillation.method import method_of

        return method_of(recipe, tokens, tokenizer, self.run.path / "signals", self.console.progress)

    def _on_step(self, name: str, steps: int, step: int, loss: float) -> None:
        self._log_training(name, step, loss=loss)
        self.console.progress(f"train {name}", step, steps, f"loss {loss:.3f}")

    def _log_training(self, name: str, step: int, **figures: float) -> None:
        self.run.log({"step": "train", "arm": name, "train_step": step, **figures})

    def _held_out(self, recipe: Recipe, tokenizer: Any) -> Path | None:
        """The token file of held-out text where training looks at its loss."""
        if not recipe.training.evaluate_steps:
            return None
        folder = self.run.path / "composed" / "held_out"

        def work() -> dict[str, Any]:
            from brd.composing.compose import compose_held_out
            from brd.reading.chosen import iter_paragraphs

            texts = (p.text for p in iter_paragraphs(self.readings_folder) if p.held_out)
            return compose_held_out(recipe, texts, tokenizer, folder)

        wanted = fingerprint("held_out", self.compose_print(REFERENCE))
        self.run.do("compose.held_out", wanted, [folder], work, self.console.say)
        return folder

    def _cut(self, recipe: Recipe) -> Recipe:
        """With the layers that were chosen by measuring, the same for all arms."""
        from brd.training.layers import cut_to

        return cut_to(recipe, self.result("train.layers")["kept"] if recipe.student.keep_layers is not None else None)

    def _measure_layers(self) -> None:
        def work() -> dict[str, Any]:
            from brd.composing.packing import TokenRows
            from brd.training.layers import measure
            from brd.training.student import load_whole

            rows = TokenRows(self.run.path / "composed" / "layers")
            return measure(self.recipe, load_whole(self.recipe), rows)

        manifest = self.run.do("train.layers", self.layers_print(), [], work, self.console.say)
        kept, influence = manifest["result"]["kept"], manifest["result"]["influence"]
        dropped = [f"{n} ({influence[n]:.3f})" for n in range(len(influence)) if n not in kept]
        self.console.say(f"  layers: {len(kept)} of {len(influence)} kept; without {', '.join(dropped)}")

    def _heal(self) -> None:
        folder = self.student(HEALED)

        def work() -> dict[str, Any]:
            from brd.training import launch
            from brd.training.student import student_tokenizer

            task = {
                "recipe": self._cut(self.recipe),
                "tokens": self.run.path / "composed" / "healing",
                "tokenizer": student_tokenizer(self.recipe),
                "folder": folder,
                "mark": self.heal_print(),
            }
            told = {"on_step": lambda steps, step, loss: self._on_step(HEALED, steps, step, loss)}
            result: dict[str, Any] = launch.run(
                self.recipe.training,
                "brd.training.healing:heal",
                task,
                told,
                folder.with_name(f"{HEALED}.process"),
            )
            return result

        manifest = self.run.do("train.healed", self.heal_print(), [folder], work, self.console.say)
        result = manifest["result"]
        first, last = result["curve"][0], result["curve"][-1]
        self.console.say(
            f"  {HEALED}: loss on held-out text {first[1]:.3f} -> {last[1]:.3f} over {last[0]} tokens "
            f"({'stands still' if result['stands_still'] else 'still falling at the limit'})"
        )

    def evaluate(self) -> None:
        """Students to scores."""
        self._needs("train", [f"train.{arm}" for arm in self.students])
        from brd.evaluation import evaluate as step

        readings: Any = None
        for arm in self.evaluated:
            asked = (
                step.teacher(self.recipe, self.readings_folder)
                if arm == TEACHER
                else step.student(self.recipe, self.student(arm), self.train_print(arm))
            )

            def skill(arm: str = arm, asked: step.Examinee = asked) -> dict[str, Any]:
                nonlocal readings
                from brd.reading.reader import Readings

                readings = readings or Readings(self.recipe, self.readings_folder)
                figures = step.reading_figures(self.recipe, readings, asked, of_teacher=arm == TEACHER)
                write_json(self.run.path / "reading_skill" / f"{arm}.json", step.rounded(figures))
                return {}

            def work(arm: str = arm, asked: step.Examinee = asked) -> dict[str, Any]:
                limit = self.recipe.evaluation.teacher if arm == TEACHER else None
                folder = self.evaluation_folder / arm
                figures = step.score_tasks(self.recipe, asked, folder, self.console.progress, limit)
                if reads(self.recipe, arm):
                    figures |= read_json(self.run.path / "reading_skill" / f"{arm}.json")
                write_json(self.evaluation_folder / f"{arm}.json", step.rounded(figures))
                return {}

            skill_file = self.run.path / "reading_skill" / f"{arm}.json"
            out = self.evaluation_folder / f"{arm}.json"
            if reads(self.recipe, arm):
                self.run.do(f"skill.{arm}", self.skill_print(arm), [skill_file], skill, self.console.say)
            self.run.do(f"{self._evaluate}.{arm}", self.evaluate_print(arm), [out], work, self.console.say)
            self.console.say(f"  {evaluation_line(arm, read_json(out))}")
        for arm in self.arms:
            describe(self, arm)

    def report(self) -> None:
        """Scores to summary.json, run.json, audit.json and report.html."""
        self._needs("evaluate", [f"{self._evaluate}.{arm}" for arm in self.evaluated])

        def work() -> dict[str, Any]:
            from brd.audit import audit
            from brd.reading.reader import Readings
            from brd.report.build import render
            from brd.summary import readings_for_report, summarise

            readings = Readings(self.recipe, self.readings_folder)
            summary = summarise(self)
            about = self._provenance()
            losses = {
                arm: [(int(s), float(v)) for s, v in self.result(f"train.{arm}")["losses"]] for arm in self.trained
            }
            found, recipe = audit(self.recipe, self.run.path, self.console), self.recipe.model_dump()
            page = render(summary, about, recipe, readings_for_report(readings), losses, found)
            write_json(self.run.path / "run.json", about)
            write_json(self.run.path / "summary.json", summary)
            scratch = self.run.path / "report.html.tmp"
            scratch.write_text(page, encoding="utf-8")
            scratch.replace(self.run.path / "report.html")
            return {}

        outputs = [self.run.path / name for name in ("report.html", "summary.json", "run.json")]
        self.run.do("report", self.report_print(), outputs, work, self.console.say)

    def result(self, step: str) -> dict[str, Any]:
        """What a step that has been run has told about itself."""
        manifest = self.run.manifest(step)
        assert manifest is not None
        return dict(manifest["result"])

    def _provenance(self) -> dict[str, Any]:
        return {
            **provenance(),
            "seed": self.recipe.seed,
            "teacher": read_json(self.readings_folder / "teacher.json"),
            "known_from": self.result("read").get("known_from", {}),
            "fingerprints": {
                "read": self.read_print(),
                **{f"train.{arm}": self.train_print(arm) for arm in self.arms},
                **{f"{self._evaluate}.{arm}": self.evaluate_print(arm) for arm in self.evaluated},
            },
        }


def _apart(tokens: dict[str, int]) -> float:
    """How far the least lies below the most, as a share of it."""
    return 1 - min(tokens.values()) / max(tokens.values()) if tokens else 0.0
