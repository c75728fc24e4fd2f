"""The reading skill of a student on held-out text: loss on verified readings, and the readings that it writes itself.

Every figure is taken twice: of the student as it stands (a bare sentence, the separator and the cue), and with the
teacher's few-shot prompt in front, since an arm that never saw the format can only then show what it can read.
"""

from collections.abc import Iterator
from typing import Any

import torch

from brd.composing.documents import Lesson, lessons
from brd.reading.behavior import Behavior, Judgement
from brd.reading.reader import Readings
from brd.recipe import Recipe, changed
from brd.teachers.shared_prefix import SharedPrefix
from brd.teachers.teacher import Teacher

# Positions whose logits are held at once in float32: 512 x 50,000 words are 100 MB.
CHUNK = 512


def reading_skill(recipe: Recipe, readings: Readings, model: Any, tokenizer: Any) -> dict[str, dict[str, Any] | None]:
    """``reading`` (as the student stands) and ``reading_prompted`` figures; see ``_figures``.

    Lessons are those of the recipe's own composing, verified readings only, whatever the arm was trained on.
    """
    recipe = changed(recipe, {"composing.verified_only": True, "composing.mix": {}})
    held_out = list(lessons(recipe, readings, held_out=True))
    original, _ = _loss(model, tokenizer, [x for x in held_out if x.part == "original"])
    engine = SharedPrefix(model, tokenizer, batch_size=recipe.teacher.batch_size)
    plain = _figures(recipe, readings, engine, prompted=False)
    totals = {
        name: _loss(model, tokenizer, [x for x in held_out if x.part == name], answers_only=True)
        for name in readings.behaviors
    }
    for name, (loss, _) in totals.items():
        plain["behaviors"][name]["loss"] = loss
    plain["loss"] = _pooled(totals)
    plain["original_loss"] = original
    prompted = None
    if recipe.evaluation.reading_prompted:
        prompted = _figures(recipe, readings, engine, prompted=True)
        totals = {name: _prompted_loss(recipe, readings, model, tokenizer, name) for name in readings.behaviors}
        for name, (loss, _) in totals.items():
            prompted["behaviors"][name]["loss"] = loss
        prompted["loss"] = _pooled(totals)
        prompted["original_loss"] = None
    engine.close()
    return {"reading": plain, "reading_prompted": prompted}


def _sentences(recipe: Recipe, readings: Readings) -> list[tuple[str, str]]:
    """The held-out sentences that students read, with their languages where these are told apart: the first ones, each
    once."""
    found: dict[tuple[str, str], None] = {}
    for paragraph in readings.paragraphs:
        if paragraph.held_out:
            code = paragraph.language if readings.behaviors.languages else ""
            found.update(dict.fromkeys((paragraph.sentence(n), code) for n in paragraph.readable))
    return list(found)[: recipe.evaluation.reading_sentences]


def _figures(recipe: Recipe, readings: Readings, engine: SharedPrefix, prompted: bool) -> dict[str, Any]:
    """Shares of well-formed and verified readings that the student writes by itself, empty ones and distinct questions
    apart, and its agreement with the teacher's verified readings (entity F1, answer F1; over several languages the
    mean, weighted by the number of readings)."""
    places, separator = _sentences(recipe, readings), recipe.composing.separator
    out: dict[str, Any] = {"behaviors": {}}
    for name, first in readings.behaviors.items():
        judged: list[Judgement] = []
        agreements: list[tuple[float, int]] = []
        empty = 0
        for code, behavior in readings.behaviors.each(name).items():
            sentences = [sentence for sentence, language in places if language == code]
            written = write_readings(engine, behavior, [(s, "") for s in sentences], separator, prompted)
            mine = [behavior.judge(text, s, finished=ok) for s, (text, ok) in zip(sentences, written, strict=True)]
            judged += mine
            empty += sum(behavior.is_empty(j.content) for j in mine if j.verdict == "verified" and j.content)
            asked = [
                (s, r) for s in sentences if (r := _verified(readings, name, s, code)) and behavior.given(r) is not None
            ]
            if any(behavior.given(r) for _, r in asked):
                given = [(s, behavior.given(r) or "") for s, r in asked]
                answers = write_readings(engine, behavior, given, separator, prompted)
            else:
                by_sentence = dict(zip(sentences, written, strict=True))
                answers = [by_sentence[s] for s, _ in asked]
            pairs = [(text, r) for (text, _), (_, r) in zip(answers, asked, strict=True)]
            if (agreement := behavior.agreement(pairs)) is not None:
                agreements.append((agreement, len(pairs)))
        verified = [j for j in judged if j.verdict == "verified" and j.content is not None]
        n = len(places)
        figures: dict[str, Any] = {
            "n": n,
            "well_formed": sum(j.verdict != "malformed" for j in judged) / n,
            "verified": len(verified) / n,
            "empty": empty / n,
        }
        if name == "qra":
            figures["distinct_questions"] = len({j.content["question"].lower() for j in verified if j.content})
        total = sum(count for _, count in agreements)
        weighted = sum(agreement * (count / total) for agreement, count in agreements) if total else None
        figures[first.skill] = out[first.skill] = weighted
        figures["n_agreement"] = total
        out["behaviors"][name] = figures
    for share in ("well_formed", "verified"):
        out[share] = sum(f[share] for f in out["behaviors"].values()) / len(out["behaviors"])
    return out


def write_readings(
    engine: Teacher, behavior: Behavior, asked: list[tuple[str, str]], separator: str, prompted: bool
) -> list[tuple[str, bool]]:
    """What a model writes (text, finished) after each (sentence, what is given behind the cue).

    It is shown the bare sentence, the separator and the cue, or with ``prompted`` the behavior's few-shot prompt.
    """
    if prompted:
        prefix, prompts = behavior.prefix, [behavior.suffix(s) + given for s, given in asked]
        stop = behavior.stop
    else:
        prefix, prompts = "", [s + separator + behavior.cue + given for s, given in asked]
        stop = tuple(dict.fromkeys([*behavior.stop, separator]))
    answers = dict(engine.answer(prefix, prompts, stop=stop, max_new_tokens=behavior.max_new_tokens))
    return [(answers[n].text, answers[n].finished) for n in range(len(prompts))]


def _verified(readings: Readings, behavior: str, sentence: str, language: str) -> dict[str, Any] | None:
    reading = readings.get(behavior, sentence, language)
    return reading.parsed() if reading and reading.verdict == "verified" else None


def _pooled(totals: dict[str, tuple[float | None, int]]) -> float | None:
    """Mean over all tokens of all behaviors."""
    tokens = sum(n for _, n in totals.values())
    return sum(loss * n for loss, n in totals.values() if loss is not None) / tokens if tokens else None


def _loss(model: Any, tokenizer: Any, held_out: list[Lesson], answers_only: bool = False) -> tuple[float | None, int]:
    """Mean loss per token in nats, over all tokens or those of the readings' answers, and the number of tokens.

    Lessons longer than the model's window are run in pieces.
    """
    total, count = 0.0, 0
    window = getattr(model.config, "max_position_embeddings", None) or 2048
    for ids, counted in _encoded(tokenizer, held_out, answers_only):
        for start in range(0, len(ids), window):
            piece, marks = ids[start : start + window], counted[start : start + window]
            if len(piece) > 1 and any(marks[1:]):
                losses = _token_losses(model, torch.tensor([piece], device=model.device))
                chosen = losses[torch.tensor(marks[1:], device=losses.device)]
                total += float(chosen.sum())
                count += len(chosen)
    return (total / count if count else None), count


def _encoded(tokenizer: Any, held_out: list[Lesson], answers_only: bool) -> Iterator[tuple[list[int], list[bool]]]:
    for lesson in held_out:
        coded = tokenizer(lesson.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [*coded["input_ids"], tokenizer.eos_token_id]
        if not answers_only:
            yield ids, [True] * len(ids)
        elif lesson.answers:
            marks = [any(a < end and start < b for a, b in lesson.answers) for start, end in coded["offset_mapping"]]
            yield ids, [*marks, False]


@torch.inference_mode()
def _token_losses(model: Any, ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """Loss of each token but the first of one sequence, ``(tokens - 1,)`` in float32."""
    logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).logits[0, :-1]
    targets = ids[0, 1:]
    pieces = [
        torch.nn.functional.cross_entropy(logits[i : i + CHUNK].float(), targets[i : i + CHUNK], reduction="none")
        for i in range(0, len(targets), CHUNK)
    ]
    return torch.cat(pieces)


@torch.inference_mode()
def _prompted_loss(
    recipe: Recipe, readings: Readings, model: Any, tokenizer: Any, name: str
) -> tuple[float | None, int]:
    """Loss on the verified readings' answers with the few-shot prompt in front, its cache computed once."""
    from transformers import DynamicCache

    total, count = 0.0, 0
    for code, behavior in readings.behaviors.each(name).items():
        prefix = tokenizer(behavior.prefix, add_special_tokens=False)["input_ids"]
        cache = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([prefix], device=model.device), past_key_values=cache, use_cache=True)
        for sentence, language in _sentences(recipe, readings):
            if language != code or (content := _verified(readings, name, sentence, code)) is None:
                continue
            question = tokenizer(behavior.suffix(sentence), add_special_tokens=False)["input_ids"]
            answer = tokenizer(behavior.render(content), add_special_tokens=False)["input_ids"]
            ids = torch.tensor([question + answer], device=model.device)
            losses = _token_losses(model, ids, cache)[len(question) - 1 :]
            cache.crop(-ids.shape[1])
            total += float(losses.sum())
            count += len(losses)
    return (total / count if count else None), count
