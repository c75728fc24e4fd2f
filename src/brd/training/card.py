"""The model card of a trained student: what it is, where it comes from, on which terms, and what it scored."""

from dataclasses import dataclass, field
from typing import Any

import yaml

from brd.embedded import MODELS
from brd.reading.behavior import one_line
from brd.reading.card import public, version
from brd.recipe import Recipe

PAPER = "https://arxiv.org/abs/2507.19741"
# What the card tells of the recipe. Paths of the machine that trained are nobody's business.
_TOLD: dict[str, set[str]] = {
    "reading": {"sentences", "exemplars"},
    "composing": {"level", "separator", "verified_only", "shuffle_readings", "mix", "row_tokens"},
    "student": {"layers", "keep_layers", "dropout", "lora"},
    "training": {"epochs", "learning_rate", "schedule", "warmup", "weight_decay", "rows_per_step"},
}
# What an objective lowers.
_LOSSES = {
    "lm": "Plain causal LM loss over all tokens",
    "kd": "Knowledge distillation: the teacher's distribution at every token, and the text",
    "gkd": "GKD: generalised Jensen-Shannon divergence from the teacher, partly on the student's own text",
    "minillm": "MiniLLM: reverse KL divergence from the teacher on the student's own text, and the text",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a run knows of a student. ``recipe`` is the arm's; the steps' results and the figures are as they lie in the
    run folder, and empty where there are none. ``base`` are the figures of the student that all arms began with."""

    recipe: Recipe
    arm: str
    about: str
    trained: dict[str, Any]
    composed: dict[str, Any] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    healed: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None

    @property
    def is_trained(self) -> bool:
        return bool(self.trained.get("steps"))


def licences(recipe: Recipe) -> dict[str, tuple[str, str | None]]:
    """Text, teacher and student of a recipe: their public names, and their licences where they are known."""
    named, sources = recipe.licences, recipe.text.source
    listed = [public(s) for s in ([sources] if isinstance(sources, str) else sources)]
    ours = "cc0-1.0" if listed == ["passages"] else None
    return {
        "text": (", ".join(listed), named.text or ours),
        "teacher": (model_name(recipe.teacher.model), named.teacher or _known(recipe.teacher.model)),
        "student": (model_name(recipe.student.model), named.student or _known(recipe.student.model)),
    }


def model_name(name: str) -> str:
    """A model's name as others know it."""
    return MODELS[name].hub if name in MODELS else public(name)


def _known(name: str) -> str | None:
    return MODELS[name].licence if name in MODELS else None


def licence_of(told: Told) -> str | None:
    """The licence of the student's own weights: what was said, else that of the weights that it began with."""
    return told.licence or licences(told.recipe)["student"][1]


def card(told: Told) -> str:
    """The Hub's metadata, then Markdown."""
    parts = [
        f"---\n{_header(told)}---\n",
        f"# {told.recipe.name}: {told.arm}\n",
        _opening(told),
        _use(told),
        _scores(told),
        _making(told),
        _terms(told),
        _limits(told),
    ]
    return "\n".join(part for part in parts if part)


def _header(told: Told) -> str:
    from huggingface_hub import ModelCardData

    recipe, name = told.recipe, f"{told.recipe.name}-{told.arm}"
    sources = [s.removeprefix("hub:") for s in _sources(recipe) if s.startswith("hub:")]
    languages = recipe.reading.languages or [recipe.text.language]
    base = model_name(recipe.student.model)
    data = ModelCardData(
        language=[code for code in languages if len(code) in (2, 3)] or None,
        license=licence_of(told),
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if "/" in base else None,
        base_model_relation="finetune" if "/" in base else None,
        datasets=sources or None,
        tags=["basic-reading-distillation"],
        model_name=name,
        eval_results=_results(told) or None,
    )
    return data.to_yaml() + "\n"


def _results(told: Told) -> list[Any]:
    from huggingface_hub import EvalResult

    found = []
    for name, task in told.figures.get("tasks", {}).items():
        half = f" of half {task['half']}" if task.get("half") else ""
        found.append(
            EvalResult(
                task_type="text-classification",
                dataset_type=task["task"],
                dataset_name=f"{name} (template {task['template']}, {task['n']} validation items{half})",
                dataset_split="validation",
                # Two templates of a task are two results.
                dataset_config=task["template"],
                metric_type="accuracy",
                metric_name=f"accuracy, {task['shots']} shots, candidates ranked by {task['metric']}",
                metric_value=task["accuracy"],
            )
        )
    return found


def _sources(recipe: Recipe) -> list[str]:
    source = recipe.text.source
    return [source] if isinstance(source, str) else list(source)


def _opening(told: Told) -> str:
    known, recipe = licences(told.recipe), told.recipe
    size = f" ({told.trained['parameters']:,} parameters)" if told.trained.get("parameters") else ""
    coarse = ", from a 4-bit file of it" if recipe.student.model in MODELS else ""
    lines = [
        f"A student of basic reading distillation ([paper]({PAPER})): a teacher read text sentence by sentence, and "
        "small language models were trained on what it noticed, or, to compare, on other text.\n",
        f"- **Arm:** `{told.arm}`, {one_line(told.about)}",
        f"- **Student:** began as `{known['student'][0]}`{coarse}{size}",
        f"- **Teacher:** `{known['teacher'][0]}`" + ("" if told.is_trained else ", of which this model saw nothing"),
        f"- **Text:** `{known['text'][0]}`",
    ]
    if told.layers:
        total, influence = len(told.layers["influence"]), told.layers["influence"]
        kept = told.layers["kept"]
        dropped = ", ".join(f"{n} ({influence[n]:.3f})" for n in range(total) if n not in kept)
        lines.append(
            f"- **Layers:** the {len(kept)} of {total} that change most what passes through them; without {dropped} "
            "(in brackets 1 - cosine of input and output on held-out text)"
        )
    elif recipe.student.layers is not None:
        lines.append(f"- **Layers:** of the original, counted from 0: {', '.join(map(str, recipe.student.layers))}")
    if told.healed:
        curve = told.healed["curve"]
        lines.append(
            f"- **Before all arms:** trained on {told.healed['trained_tokens']:,} tokens of original text, loss on "
            f"held-out text {curve[0][1]:.3f} to {curve[-1][1]:.3f}"
        )
    if told.is_trained and recipe.student.lora is not None:
        lora = recipe.student.lora
        lines.append(
            f"- **LoRA:** rank {lora.rank}, alpha {lora.alpha:g}; merged into these weights, the adapter itself is in "
            "`adapter/` and belongs to the student as the arm began with it"
        )
    return "\n".join(lines) + "\n"


def _use(told: Told) -> str:
    separator = told.recipe.composing.separator
    example = f"The ferry reached Bergen at noon.{separator}Question:"
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'student = pipeline("text-generation", model="PATH OR NAME OF THIS MODEL", dtype="float32")\n'
        f"print(student({example!r}, max_new_tokens=60, do_sample=False))\n```\n\n"
        "A sentence, the separator and a cue (`Entities:`, `Question:`) ask for a reading; any other text is gone on "
        "with. A base model of language: it follows instructions no better than the model that it began as.\n"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _scores(told: Told) -> str:
    if not told.figures:
        return "## Scores\n\nNot evaluated.\n"
    before = told.base.get("tasks", {})
    lines = [
        "## Scores\n",
        "Accuracy in %, with a 95 % interval; blind: nothing of these tasks was seen before. `commonest` is what the "
        "commonest label would earn if it were always given.\n",
        "| task | template | items | accuracy | AUC | commonest | base |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, task in told.figures["tasks"].items():
        base = before.get(name, {})
        lines.append(
            f"| {name} | {task['template']} | {task['n']} | {_percent(task['accuracy'])} [{_percent(task['low'])}, "
            f"{_percent(task['high'])}] | {_percent(task['auc'])} | {_percent(task['majority'])} "
            f"| {_percent(base.get('accuracy'))} |"
        )
    macro = [_percent(told.figures.get(key)) for key in ("macro_average", "macro_auc")]
    lines.append(f"| average |  |  | {macro[0]} | {macro[1]} |  | {_percent(told.base.get('macro_average'))} |")
    lines.append(
        "\n`base` is the student that all arms began with. Single seeds and small samples: see the run's report."
    )
    reading = told.figures.get("reading")
    if reading:
        before = told.base.get("reading") or {}
        lines += [
            "\nReading of held-out sentences, a bare sentence and the cue given:\n",
            "| | this model | base |",
            "| --- | ---: | ---: |",
        ]
        for key, what in (("well_formed", "well formed"), ("verified", "verified")):
            lines.append(f"| {what}, % | {_percent(reading[key])} | {_percent(before.get(key))} |")
        for key, what in (("loss", "loss on the teacher's readings"), ("original_loss", "loss on original text")):
            values = [f"{one[key]:.3f}" if one.get(key) is not None else "-" for one in (reading, before)]
            lines.append(f"| {what}, nats a token | {values[0]} | {values[1]} |")
    return "\n".join(lines) + "\n"


def _making(told: Told) -> str:
    lines = ["## How it was made\n"]
    if told.is_trained:
        losses, lessons = told.trained.get("losses") or [], told.composed.get("lessons") or {}
        kinds = ", ".join(f"{name} {number}" for name, number in lessons.items())
        lines.append(
            f"{told.trained['steps']} steps, {told.trained['trained_tokens']:,} tokens, "
            f"{told.trained['passes']:.2f} passes over its text"
            + (f" ({told.composed['readings']} readings; documents by kind: {kinds})" if lessons else "")
            + f"; dtype {told.trained['dtype']}"
            + (f"; loss {losses[0][1]:.3f} in the first step, {losses[-1][1]:.3f} in the last" if losses else "")
            + f". {_LOSSES[told.recipe.training.objective]}.\n"
        )
    readings = told.read.get("readings") or {}
    if readings:
        said = "; ".join(f"{name}: {one['verified']} of {one['asked']} verified" for name, one in readings.items())
        lines.append(f"Readings of the run: {said}. Readings are verified by form and by words, not by people.\n")
    recipe = told.recipe.model_dump(include=_TOLD)
    recipe["reading"]["behaviors"] = list(map(public, told.recipe.reading.behaviors))
    text = yaml.safe_dump(
        {"name": told.recipe.name, "seed": told.recipe.seed, **recipe}, sort_keys=False, allow_unicode=True
    )
    lines.append(f"With the program `brd` {version()}, and in its recipe:\n\n```yaml\n{text}```\n")
    return "\n".join(lines)


def _terms(told: Told) -> str:
    known = licences(told.recipe)
    lines = ["## Licences\n", "| what | which | licence |", "| --- | --- | --- |"]
    words = {"text": "text", "teacher": "teacher", "student": "student at the beginning"}
    for key, (name, licence) in known.items():
        lines.append(f"| {words[key]} | `{name}` | {f'`{licence}`' if licence else 'not stated'} |")
    mine = licence_of(told)
    lines.append(f"| this model | `{told.recipe.name}: {told.arm}` | {f'`{mine}`' if mine else 'not stated'} |")
    return (
        "\n".join(lines) + "\n\nAs the recipe states them, or as they are known of what is embedded in the program. A "
        "model's terms may also bind what is trained on its output, and a text's what is trained on it: look at all "
        "of them before you use this model.\n"
    )


def _limits(told: Told) -> str:
    return (
        "## Limits\n\n"
        "- A small model, trained on the readings of a machine that nobody looked at one by one. It invents names, "
        "facts and answers.\n"
        "- It has the errors and biases of its first weights, of the text and of the teacher.\n"
        "- Scores are of the tasks, items and prompts named above and say nothing of others.\n"
    )
