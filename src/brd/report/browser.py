"""The sentences with their readings that can be browsed on the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from brd.reading.behavior import one_line
from brd.reading.ner import TYPES

Figures = Mapping[str, Any]

# So many sentences are embedded for browsing, so many of them held-out ones where there are enough of both.
EMBEDDED_SENTENCES = 2000
EMBEDDED_HELD_OUT = 400


def browser(readings: Sequence[Figures], language: str) -> dict[str, Any]:
    """Sentences with their readings, as the page's script reads them, and how many of how many are there."""
    sentences: dict[tuple[Any, ...], dict[str, Any]] = {}
    for reading in readings:
        part = "held_out" if reading.get("held_out") else "train"
        place = (part, reading.get("document"), reading.get("paragraph"), reading.get("sentence"))
        if place not in sentences:
            where = dict(zip(("part", "document", "paragraph", "sentence"), place, strict=True))
            sentences[place] = {**where, "text": one_line(reading.get("text") or ""), "readings": []}
        kept = {key: reading.get(key) for key in ("behavior", "verdict", "reason", "content")}
        # What was verified is shown from its content.
        raw = {} if kept["verdict"] == "verified" else {"raw": reading.get("raw") or "", "content": None}
        sentences[place]["readings"].append(kept | raw)
    every = list(sentences.values())
    shown = _sample(every)
    found = [reading for sentence in shown for reading in sentence["readings"]]
    return {
        "language": language,
        "types": list(TYPES),
        "total": len(every),
        "readings": len(found),
        "held_out": sum(s["part"] == "held_out" for s in shown),
        "behaviors": list(dict.fromkeys(r["behavior"] for r in found)),
        "reasons": sorted({r["reason"] for r in found if r["reason"]}),
        "sentences": shown,
    }


def _sample(sentences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All, or where there are too many the first of each part."""
    if len(sentences) <= EMBEDDED_SENTENCES:
        return sentences
    held_out = sum(s["part"] == "held_out" for s in sentences)
    train = len(sentences) - held_out
    room = max(min(held_out, EMBEDDED_HELD_OUT), EMBEDDED_SENTENCES - train)
    left = {"held_out": room, "train": EMBEDDED_SENTENCES - room}
    kept = []
    for sentence in sentences:
        if left[sentence["part"]] > 0:
            left[sentence["part"]] -= 1
            kept.append(sentence)
    return kept
