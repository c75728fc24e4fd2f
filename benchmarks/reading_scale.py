"""Sentences a second from a text file to stored verdicts, by ``brd.reading.reader.read``, against a loop of one's own.

    python benchmarks/reading_scale.py [--sizes 100000 1000000] [--behaviors ner] [--rounds 3]

The teacher is a stub in the same process that answers at once with plausible answers, so what is measured is all that
reading costs beside the teacher: splitting, keys, prompts, judging, the journal, the shards. The corpus is generated.
The loop is what one writes in its place: the same splitter, prompts and verifier, sentences that came before are left
out, and a JSON line an answer is appended and flushed. It keeps no keys and no spans, makes no Parquet, cannot go on
after an interruption and holds its sentences as a set; half of its speed is aimed at. Every run is a process of its
own; the order of the two alternates. Linear is the time of a sentence in the largest corpus over that in the smallest.
"""

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from brd.reading.behavior import load_behaviors
from brd.reading.reader import read
from brd.recipe import Recipe
from brd.teachers.teacher import Answer
from brd.text.sentences import limit_broken, split
from brd.text.sources import paragraphs

TARGET_A_SECOND = 10_000
TARGET_MB = 1000
FIRST = "Mira Tomas Elin Joan Pavel Ines Otto Ruth Sadiq Lena Hugo Anja Nils Petra Ravi Olga".split()
LAST = "Okafor Lindqvist Moreau Haddad Novak Brandt Silva Keller Ono Varga Costa Weber Hansen Murray".split()
PLACES = "Oslo Trieste Bergen Porto Graz Tartu Leiden Ghent Bilbao Turku Split Lviv Malmö Košice Évora Łódź".split()
NOUNS = "bridge harbour mill library orchard ferry market school museum bakery station lighthouse workshop".split()
VERBS = "opened repaired sold painted visited measured described closed restored crossed photographed".split()
KINDS = "old narrow quiet wooden crowded small bright distant empty famous abandoned".split()
ENDS = (
    "before the winter came",
    "after the long meeting of the council",
    "because the river had risen again",
    "although few people believed that the plan would work",
    "while the others waited outside in the rain",
    "and wrote a letter about it to the newspaper",
    "in the year {n}",
    "with the help of {n} neighbours",
)


def sentence(draw: random.Random) -> str:
    names, pick = (FIRST, LAST, VERBS, KINDS, NOUNS, PLACES), draw.choice
    first, last, verb, kind, noun, place = map(pick, names)
    end = pick(ENDS).format(n=draw.randint(200, 2020))
    return f"{first} {last} {verb} the {kind} {noun} in {place} {end}."


def write_corpus(path: Path, sentences: int) -> None:
    """Documents of some paragraphs of some sentences, in the layout of CC-100."""
    draw = random.Random(sentences)
    left = sentences
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            for _ in range(draw.randint(1, 8)):
                count = min(left, draw.randint(1, 8))
                file.write(" ".join(sentence(draw) for _ in range(count)) + "\n")
                if (left := left - count) <= 0:
                    break
            file.write("\n")


class Stub:
    """Finds the person and the place where they always stand; one answer in eight is flawed."""

    context_length = 10_000

    def identity(self) -> dict[str, str]:
        return {"model": "stub"}

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        for index, suffix in enumerate(suffixes):
            asked, _, cue = suffix.partition("\n")
            _, first, last, verb, _, kind, noun, _, place, *_ = asked.split()
            if cue == "Question:":
                asked_for = "Somebody from Vienna" if index % 8 == 0 else f"{first} {last}"
                text = f" Who {verb} the {kind} {noun}?\nAnswer: {asked_for}"
            elif index % 8 == 0:
                text = f" {last} {first} (person)"
            else:
                text = f" {first} {last} (person: who {verb} the {noun}); {place} (location: where the {noun} is)"
            yield index, Answer(text, 400, 25, True)

    def close(self) -> None:
        pass


def a_recipe(corpus: Path, behaviors: list[str]) -> Recipe:
    text = {"source": str(corpus), "held_out": 0.01}
    reading = {"behaviors": behaviors, "sentences": 10**9, "held_out_sentences": 10**9}
    return Recipe.model_validate({"name": "scale", "text": text, "reading": reading})


def by_read(corpus: Path, behaviors: list[str], folder: Path) -> None:
    read(a_recipe(corpus, behaviors), folder / "readings", Stub())


def by_loop(corpus: Path, behaviors: list[str], folder: Path) -> None:
    recipe, teacher = a_recipe(corpus, behaviors), Stub()
    settings = recipe.text
    for name, behavior in load_behaviors(behaviors).items():
        seen: set[str] = set()
        batch: list[tuple[str, int, str]] = []
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:

            def ask(behavior: Any = behavior, batch: list[tuple[str, int, str]] = batch, file: Any = file) -> None:
                suffixes = [behavior.suffix(text) for *_, text in batch]
                answers = teacher.answer(behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=72)
                for index, answer in answers:
                    document, paragraph, text = batch[index]
                    found = behavior.judge(answer.text, text, finished=answer.finished)
                    row = {"document": document, "paragraph": paragraph, "text": text, "raw": answer.text}
                    verdict = {"verdict": found.verdict, "reason": found.reason, "content": found.content}
                    file.write(json.dumps({**row, **verdict}, ensure_ascii=False) + "\n")
                    file.flush()
                batch.clear()

            for paragraph in paragraphs(settings):
                for span in split(paragraph.text, settings.language):
                    text = paragraph.text[span.start : span.end]
                    if limit_broken(span, settings.min_characters, settings.max_characters) or text in seen:
                        continue
                    seen.add(text)
                    batch.append((paragraph.document, paragraph.index, text))
                    if len(batch) == 8192:
                        ask()
            ask()


def measured(way: str, corpus: Path, behaviors: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and the most memory in MB, of a process that did nothing else before."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        start, used = time.perf_counter(), time.process_time()
        {"read": by_read, "loop": by_loop}[way](corpus, behaviors, Path(folder))
        seconds, used = time.perf_counter() - start, time.process_time() - used
    unit = 1024**2 if sys.platform == "darwin" else 1024
    own, others = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, used, (own + others) / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--behaviors", nargs="+", default=["ner"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[tuple[str, int], list[float]] = {}
    memory = 0.0
    with tempfile.TemporaryDirectory() as folder:
        corpora = {size: Path(folder) / f"{size}.txt" for size in sorted(options.sizes)}
        for size, path in corpora.items():
            write_corpus(path, size)
            print(f"{size} sentences, {path.stat().st_size / 1e6:.1f} MB", flush=True)
        for number in range(options.rounds):
            for size, path in corpora.items():
                for way in ("read", "loop") if number % 2 == 0 else ("loop", "read"):
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                        took, used, most = process.submit(measured, way, path, options.behaviors).result()
                    seconds.setdefault((way, size), []).append(took)
                    memory = max(memory, most) if way == "read" else memory
                    of = f"({took:.1f} s, {used:.1f} s of one processor)"
                    print(
                        f"round {number + 1}: {way} {size}: {size / took:.0f} sentences/s {of}, {most:.0f} MB",
                        flush=True,
                    )
    small, large = min(corpora), max(corpora)
    linear = [(b / large) / (a / small) for a, b in zip(seconds["read", small], seconds["read", large], strict=True)]
    ratios = [a / b for a, b in zip(seconds["loop", large], seconds["read", large], strict=True)]
    rate = large / statistics.median(seconds["read", large])
    print(f"a sentence of {large} takes {statistics.median(linear):.3f} times as long as one of {small}")
    print(f"{rate:.0f} sentences/s, {'above' if rate >= TARGET_A_SECOND else 'BELOW'} {TARGET_A_SECOND}")
    print(f"at most {memory:.0f} MB, {'below' if memory <= TARGET_MB else 'ABOVE'} {TARGET_MB}")
    print(
        json.dumps(
            {
                "name": "reading_scale",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "target": 0.5,
                "what": f"sentences/s, {large} sentences with {'+'.join(options.behaviors)} and a stub teacher through "
                f"read ({rate:.0f}, should be {TARGET_A_SECOND}; {memory:.0f} MB; a sentence takes "
                f"{statistics.median(linear):.2f} times that of {small}), over a loop that appends JSON lines",
            }
        )
    )


if __name__ == "__main__":
    main()
