"""MB a second of each filter of the corpus, and of near-duplicates by a peer in the same run.

    python benchmarks/filters.py [--rounds 3] [--megabytes 1]

The corpus is made of our own passages: their words in new order, a tenth of the paragraphs repeated and a tenth
repeated with a word changed. The peer for near-duplicates is datasketch as its own documentation uses it (a MinHash
over the bytes of each run of words, SHA-1, then the same index), with the same permutations and threshold. The order
alternates; seconds are those of the process on one core, so that a busy machine tells nearly the same. Printed beside
it: the memory that the indexes of duplicates take for each paragraph kept.
"""

import argparse
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from datasketch import MinHash, MinHashLSH

from brd.sections.filters import Filters
from brd.sections.text import Text
from brd.text.filters import FILTERS, Context
from brd.text.ngrams import words_of
from brd.text.paragraph import Paragraph
from brd.text.sources import paragraphs

ON: dict[str, Any] = {
    "length": {"min_characters": 40, "min_words": 8},
    "language": {},
    "repetition": {},
    "pii": {},
    "decontaminate": {},
    "exact_duplicates": {},
    "near_duplicates": {},
}


def corpus(megabytes: float) -> list[Paragraph]:
    drawn = random.Random(0)
    passages = [p.text for p in paragraphs(Text())]
    made: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        kind = drawn.random()
        if made and kind < 0.1:
            text = drawn.choice(made)
        elif made and kind < 0.2:
            words = drawn.choice(made).split(" ")
            words[drawn.randrange(len(words))] = "harbour"
            text = " ".join(words)
        else:
            sentences = [s for p in drawn.sample(passages, 3) for s in p.split(". ")]
            words = ". ".join(drawn.sample(sentences, min(4, len(sentences)))).split(" ")
            cut = drawn.randrange(len(words))
            text = " ".join(words[cut:] + words[:cut])
        made.append(text)
        size += len(text.encode())
    return [Paragraph(f"d{number // 5}", number % 5, text) for number, text in enumerate(made)]


def tests() -> Iterator[tuple[str, tuple[str, ...]]]:
    """As many items as a few of the shipped tasks have, of the passages' words: most words are known, few runs are."""
    drawn = random.Random(1)
    words = sorted({word for p in paragraphs(Text()) for word in words_of(p.text)})
    for number in range(5000):
        yield f"t/{number}", (" ".join(drawn.choices(words, k=40)),)


def by_filter(name: str, stream: list[Paragraph]) -> tuple[int, float]:
    settings = Filters.model_validate({name: ON[name]}).on()[name]
    judge = FILTERS[name](settings, Context("en", tests)).judge
    start = time.process_time()
    return sum(judge(paragraph) is not None for paragraph in stream), time.process_time() - start


def by_datasketch(stream: list[Paragraph]) -> tuple[int, float]:
    start = time.process_time()
    index = MinHashLSH(threshold=0.8, num_perm=128)
    kept: list[Any] = []
    dropped = 0
    for paragraph in stream:
        words = words_of(paragraph.text)
        minhash = MinHash(num_perm=128)
        for at in range(len(words) - 4):
            minhash.update(" ".join(words[at : at + 5]).encode())
        if any(minhash.jaccard(kept[number]) >= 0.8 for number in index.query(minhash)):
            dropped += 1
        else:
            index.insert(len(kept), minhash)
            kept.append(minhash)
    return dropped, time.process_time() - start


def memory(name: str, number: int = 8000) -> float:
    """Bytes that the filter grows by for each of so many different paragraphs of 30 words."""
    drawn = random.Random(2)
    stream = [Paragraph("d", n, " ".join(str(drawn.getrandbits(20)) for _ in range(30))) for n in range(number)]
    settings = Filters.model_validate({name: ON[name]}).on()[name]
    tracemalloc.start()
    judge = FILTERS[name](settings, Context()).judge
    before = tracemalloc.get_traced_memory()[0]
    kept = sum(judge(paragraph) is None for paragraph in stream)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=1.0)
    options = parser.parse_args()
    stream = corpus(options.megabytes)
    size = sum(len(p.text.encode()) for p in stream) / 1e6
    ways: dict[str, Callable[[], tuple[int, float]]] = {name: partial(by_filter, name, stream) for name in FILTERS}
    ways["datasketch"] = partial(by_datasketch, stream)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, int] = {}
    for number in range(options.rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            found[name], seconds = ways[name]()
            rates[name].append(size / seconds)
        print(f"round {number + 1}: " + ", ".join(f"{n} {r[-1]:.2f}" for n, r in rates.items()) + " MB/s", flush=True)
    print(f"{len(stream)} paragraphs of {1e6 * size / len(stream):.0f} bytes")
    for name, rate in rates.items():
        print(f"{name}: {statistics.median(rate):.2f} MB/s, {found[name]} paragraphs")
    for name in ("exact_duplicates", "near_duplicates"):
        print(f"{name}: {memory(name):.0f} bytes for each paragraph kept")
    ratios = [a / b for a, b in zip(rates["near_duplicates"], rates["datasketch"], strict=True)]
    print(
        json.dumps(
            {
                "name": "filters",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "target": 2.0,
                "what": f"MB/s of near_duplicates ({statistics.median(rates['near_duplicates']):.2f}) over "
                f"datasketch's own way ({statistics.median(rates['datasketch']):.2f}), one core, "
                f"{found['near_duplicates']} and {found['datasketch']} of {len(stream)} paragraphs dropped",
            }
        )
    )


if __name__ == "__main__":
    main()
