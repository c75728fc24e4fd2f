"""The road of the data: read, compose, train, evaluate, report. A step runs only when what it rests on changed."""

from pathlib import Path
from typing import Any

from brd.console import Console
from brd.errors import BrdError
from brd.experiment import HEALED, REFERENCE, TEACHER, Arm, chain, reads, split_last
from brd.experiment import arm as arm_of
from brd.fingerprints import Fingerprints
from brd.recipe import Recipe, changed
from brd.recipe_corpus import open_corpus
from brd.run import RunFolder, provenance, read_json, write_json
from brd.steps import composing, training
from brd.students import describe
from brd.summary import evaluation_line, reading_lines
from brd.text.corpus import Corpus

STEPS = ("read", "compose", "train", "evaluate", "report")


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
            composing.check_task_data(self)
        if STEPS.index(last) >= STEPS.index("train"):
            training.check(self)
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

    def needs(self, step: str, names: list[str]) -> None:
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
        composing.compose(self)

    def train(self) -> None:
        """Token files to students."""
        training.train(self)

    def evaluate(self) -> None:
        """Students to scores."""
        self.needs("train", [f"train.{arm}" for arm in self.students])
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
        self.needs("evaluate", [f"{self._evaluate}.{arm}" for arm in self.evaluated])

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
