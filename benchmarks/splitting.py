"""Megabytes a second from a text file to sentences with their spans, against sentencex called by hand.

    python benchmarks/splitting.py [--megabytes 100] [--rounds 5]

Ours is ``text.sources.paragraphs`` and ``text.sentences.split``: decoded lines, documents and paragraphs with names,
sentences with exact spans. By hand is a loop over the file's lines that asks sentencex for the places of sentences
(``get_sentence_boundaries``) and keeps the white space about them; half of its speed is aimed at. One process; the
order alternates. Where ``pysbd`` or ``nupunkt`` is installed it is measured too, on less text. The text is generated.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencex
from reading_scale import write_corpus

from brd.sections.text import Text
from brd.text.sentences import split
from brd.text.sources import paragraphs

TARGET_A_SECOND = 20
BYTES_A_SENTENCE = 88


def ours(path: Path) -> int:
    return sum(len(split(paragraph.text, "en")) for paragraph in paragraphs(Text(source=str(path))))


def by_hand(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        lines = (sentencex.get_sentence_boundaries("en", line.rstrip("\n")) for line in file)
        return sum(len([(found["start_index"], found["end_index"]) for found in line]) for line in lines)


def pysbd(path: Path) -> int:
    from pysbd import Segmenter  # type: ignore[import-not-found]

    segmenter = Segmenter(language="en", char_span=True)
    with path.open(encoding="utf-8") as file:
        return sum(len(segmenter.segment(line.rstrip("\n"))) for line in file)


def nupunkt(path: Path) -> int:
    from nupunkt import sent_spans  # type: ignore[import-not-found]

    with path.open(encoding="utf-8") as file:
        return sum(len(sent_spans(line.rstrip("\n"))) for line in file)


def rate(way: Callable[[Path], int], path: Path) -> tuple[float, int]:
    start = time.perf_counter()
    count = way(path)
    return path.stat().st_size / 1e6 / (time.perf_counter() - start), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"ours": [], "by hand": []}
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "corpus.txt", Path(folder) / "small.txt"
        write_corpus(path, options.megabytes * 10**6 // BYTES_A_SENTENCE + 1)
        write_corpus(small, 20_000)
        print(f"{path.stat().st_size / 1e6:.1f} MB", flush=True)
        for number in range(options.rounds):
            found = {}
            for name, way in (("ours", ours), ("by hand", by_hand))[:: 1 if number % 2 == 0 else -1]:
                speed, found[name] = rate(way, path)
                rates[name].append(speed)
            assert found["ours"] == found["by hand"], found
            said = ", ".join(f"{name} {speeds[-1]:.1f} MB/s" for name, speeds in rates.items())
            print(f"round {number + 1}: {said}; {found['ours']} sentences", flush=True)
        for other in (pysbd, nupunkt):
            if importlib.util.find_spec(other.__name__):
                print(f"{other.__name__}: {rate(other, small)[0]:.2f} MB/s (of {small.stat().st_size / 1e6:.1f} MB)")
    ratios = [a / b for a, b in zip(rates["ours"], rates["by hand"], strict=True)]
    speed = statistics.median(rates["ours"])
    print(f"{speed:.1f} MB/s, {'above' if speed >= TARGET_A_SECOND else 'BELOW'} {TARGET_A_SECOND}")
    print(
        json.dumps(
            {
                "name": "splitting",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "target": 0.5,
                "what": f"MB/s from a text file to sentences with spans on one core, paragraphs and split ({speed:.1f},"
                f" should be {TARGET_A_SECOND}) over get_sentence_boundaries on lines "
                f"({statistics.median(rates['by hand']):.1f})",
            }
        )
    )


if __name__ == "__main__":
    main()
