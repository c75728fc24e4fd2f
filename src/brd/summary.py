"""What a run found, as summary.json holds it and the report shows it."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from brd.experiment import REFERENCE, TASK_DATA, chain, reads, seeds
from brd.run import read_json

if TYPE_CHECKING:
    from brd.pipeline import Pipeline


def summarise(run: "Pipeline") -> dict[str, Any]:
    """Everything that summary.json holds, of a pipeline whose steps have been run."""
    recipe, folder = run.recipe, run.evaluation_folder
    read = run.result("read")
    seconds, peak = _costs(run)
    arms = {}
    for arm in run.arms:
        arms[arm] = {"about": run.about(arm).about, **read_json(folder / f"{arm}.json")}
    trained = {arm: run.result(f"train.{arm}") for arm in run.arms}
    notes = [
        f"{arm} went through its task inputs {trained[arm]['passes']:.1f} times: it trains as long as the others"
        for arm in run.trained
        if run.about(arm).data in TASK_DATA and trained[arm]["passes"] > 1.05
    ]
    notes += [
        f"{arm} went through its original text {trained[arm]['passes']:.1f} times: fresh text of the same sources "
        "is scarce here"
        for arm in run.trained
        if run.about(arm).data in ("original", "continuations") and trained[arm]["passes"] > 1.05
    ]
    if recipe.evaluation.limit:
        which = f"{recipe.evaluation.limit} items" + (
            f" of half {recipe.evaluation.half}" if recipe.evaluation.half else ""
        )
        notes.append(f"tasks: {'' if recipe.evaluation.half else 'the first '}{which} of each validation set")
    counts = read["counts"]
    learnt = [arm for arm in run.arms if any(run.about(part).data in TASK_DATA for part in chain(arm))]
    summary = {
        "name": recipe.name,
        "half": recipe.evaluation.half,
        "arms": arms,
        **({"task_inputs": {"arms": learnt, "tasks": list(recipe.task_data.inputs)}} if learnt else {}),
        "comparisons": _comparisons(run, next(iter(arms.values()))["tasks"]),
        "contrasts": _contrasts(run, next(iter(arms.values()))["tasks"]),
        "readings": read["readings"],
        "text": {
            "documents": counts.get("documents_seen", 0),
            **{k: v for k, v in counts.items() if k.startswith(("paragraphs_", "sentences_"))},
            **({"corpus": read["corpus"]} if "corpus" in read else {}),
        },
        "seconds": {step: round(value, 2) for step, value in seconds.items()},
        "peak_rss_mb": peak,
        "trained_tokens": {arm: trained[arm]["trained_tokens"] for arm in run.arms},
        "steps": {arm: trained[arm]["steps"] for arm in run.arms},
        "passes": {arm: trained[arm]["passes"] for arm in run.arms},
        "notes": notes,
    }
    if recipe.healing:
        summary["healing"] = run.result("train.healed")
    if recipe.evaluation.teacher:
        summary["teacher"] = read_json(folder / "teacher.json")
        summary["divergences"] = _divergences(run, summary["teacher"]["tasks"])
    return summary


def _costs(run: "Pipeline") -> tuple[Counter[str], float]:
    """Seconds by step, and the most memory in MB."""
    seconds: Counter[str] = Counter()
    peak = 0.0
    steps = [name for name in run.state() if name != "report"]
    steps += [f"skill.{arm}" for arm in run.evaluated if reads(run.recipe, arm)]
    for step in steps:
        manifest = run.run.manifest(step) or {}
        kind = step.split(".")[0].split("_")[0]
        seconds["evaluate" if kind == "skill" else kind] += manifest.get("seconds", 0)
        peak = max(peak, manifest.get("peak_rss_mb", 0))
    return seconds, peak


def _focus(run: "Pipeline") -> str:
    """The arm that the others are set against, by its name without a seed."""
    names = list(seeds(run.recipe))
    return REFERENCE if REFERENCE in names else names[-1]


def _comparisons(run: "Pipeline", tasks: dict[str, Any]) -> dict[str, Any]:
    """Paired tests of the reference arm against each other one (of the last arm where it is absent)."""
    from brd.evaluation.compare import compare
    from brd.evaluation.evaluate import rounded

    # A folder may also hold what an earlier recipe asked for.
    only = {f"{task['task']}.{task['template']}" for task in tasks.values()}
    firsts, folder = {name: found[0] for name, found in seeds(run.recipe).items()}, run.evaluation_folder
    focus = firsts[_focus(run)]
    others = [arm for arm in firsts.values() if arm != focus and only]
    found = {arm: compare(folder / arm, folder / focus, only=only) for arm in others}
    return {f"{focus} - {arm}": {"a": arm, "b": focus, **rounded(row)} for arm, row in found.items()}


def _contrasts(run: "Pipeline", tasks: dict[str, Any]) -> list[dict[str, Any]]:
    """The reference arm against each other, over all their seeds, where any arm has several."""
    from brd.evaluation.contrast import contrast
    from brd.evaluation.evaluate import rounded

    by_name, focus, folder = seeds(run.recipe), _focus(run), run.evaluation_folder
    only = {f"{task['task']}.{task['template']}" for task in tasks.values()}
    if max(map(len, by_name.values())) < 2:
        return []
    found = []
    for name, arms in by_name.items():
        if name == focus:
            continue
        pair = ([folder / arm for arm in arms], [folder / arm for arm in by_name[focus]])
        names = {"name": f"{focus} - {name}", "a": arms, "b": by_name[focus]}
        row = {**names, **rounded(contrast(*pair, only=only))}
        if run.recipe.evaluation.leave_out:
            left_out = rounded(contrast(*pair, leave_out=run.recipe.evaluation.leave_out, only=only))
            row["without"] = {key: left_out[key] for key in ("endpoints", "left_out")}
        found.append(row)
    return found


def _divergences(run: "Pipeline", tasks: dict[str, Any]) -> dict[str, Any]:
    """How far each arm's distributions over candidates are from the teacher's (paper: probability analysis)."""
    from brd.evaluation.compare import divergences
    from brd.evaluation.evaluate import rounded

    folder, only = run.evaluation_folder, {f"{task['task']}.{task['template']}" for task in tasks.values()}
    return {arm: rounded(divergences(folder / "teacher", folder / arm, only=only)) for arm in run.arms}


def readings_for_report(readings: Any) -> list[dict[str, Any]]:
    """The readings as the report shows them."""
    return [
        {
            "document": paragraph.document,
            "paragraph": paragraph.index,
            "sentence": number,
            "text": reading.text,
            "behavior": reading.behavior,
            "verdict": reading.verdict,
            "reason": reading.reason,
            "content": reading.parsed(),
            "raw": reading.raw,
            "held_out": part,
        }
        for part in (False, True)
        for paragraph, number, reading in readings.all(part)
    ]


def reading_lines(read: dict[str, Any]) -> list[str]:
    """What the read step found, a line a behavior, and what the teacher was last asked for."""
    lines = filter_lines(read.get("corpus"))
    lines += [
        f"{name}: {funnel['asked']} readings, {funnel['well_formed']} well formed, "
        f"{funnel['verified']} verified ({funnel['empty']} of them empty)"
        for name, funnel in read["readings"].items()
    ]
    lines += [f"{n:,} known from {place}" for place, n in read.get("known_from", {}).items()]
    counts = read["counts"]
    if counts.get("shards_mended"):
        lines.append("the last shard was damaged: made anew from its journal, the damaged file (.damaged) was kept")
    if asked := sum(counts.get(f"{name}_asked", 0) for name in read["readings"]):
        cached = f" ({counts['cached_tokens']} of them from the server's cache)" if counts.get("cached_tokens") else ""
        repeated = f"; {counts['retries']} requests repeated" if counts.get("retries") else ""
        lines.append(
            f"asked {asked} times: {counts['prompt_tokens']} prompt tokens{cached}, {counts['new_tokens']} new ones"
            f"{repeated}"
        )
    return lines


def composed_lines(arm: str, composed: dict[str, Any]) -> list[str]:
    """How long an arm's text is; of task inputs what was left out, and what the teacher was asked."""
    fresh = f", {composed['fresh_paragraphs']} fresh paragraphs" if "fresh_paragraphs" in composed else ""
    lines = [
        f"{arm}: {composed['tokens']} tokens in {composed['rows']} rows "
        f"({composed['unique_tokens']} distinct, {composed['passes']:.2f} passes{fresh})"
    ]
    if found := composed.get("task_data"):
        left_out = {
            "tested": "are tested",
            "twice": "occur twice",
            "unanswered": "have an answer that names no candidate",
        }
        told = [f"{found[key]} {what}" for key, what in left_out.items() if found.get(key)]
        taken = ", ".join(f"{number} {part}" for part, number in composed["taken"].items())
        lines.append(f"  {found['records']} task inputs{''.join(f', {line}' for line in told)}; taken: {taken}")
    if asked := composed.get("answers", {}).get("asked"):
        about = composed["answers"]
        tokens = f": {about['prompt_tokens']} prompt tokens, {about['new_tokens']} new ones"
        lines.append(f"  asked {asked} times{tokens if about['prompt_tokens'] else ' for probabilities'}")
    return lines


def filter_lines(corpus: dict[str, Any] | None) -> list[str]:
    """What the filters made of the corpus, as far as it was read: a line for all, and one for each filter."""
    if not corpus:
        return []
    lines = [
        f"filters: {corpus['paragraphs_kept']} of {corpus['paragraphs_seen']} paragraphs kept, "
        f"{corpus['documents_kept']} of {corpus['documents_seen']} documents"
    ]
    for name, found in corpus["filters"].items():
        changed = f" and {found['changed']} changed" if found["changed"] else ""
        lines.append(f"  {name}: {found['dropped']} paragraphs dropped{changed}, in {found['documents']} documents")
    return lines


def evaluation_line(arm: str, figures: dict[str, Any]) -> str:
    """One arm's figures in a line."""
    shown = list(figures["tasks"].items())[:8]
    more = f", and {len(figures['tasks']) - len(shown)} more" if len(figures["tasks"]) > len(shown) else ""
    tasks = ", ".join(f"{n} {100 * t['accuracy']:.1f}±{100 * t['standard_error']:.1f}" for n, t in shown) + more
    line = f"{arm}: {tasks}; macro-average {100 * figures['macro_average']:.1f}"
    if reading := figures.get("reading"):
        loss = "-" if reading["loss"] is None else f"{reading['loss']:.3f}"
        line += f"; reading loss {loss}, well formed {100 * reading['well_formed']:.0f} %"
        line += f", verified {100 * reading['verified']:.0f} %"
    return line
