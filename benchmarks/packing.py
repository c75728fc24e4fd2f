"""Seconds to pack documents whole into rows, what of the rows is padding, and the memory that a large file takes.

    python benchmarks/packing.py [--documents 100000] [--row-tokens 512] [--rounds 3] [--tokens 10000000]

Documents are of log-normal lengths, a few of them longer than a row. Ours reads them one by one, as composing does, and
ends with the files on disk. The peer is TRL (the extra `distill`): `pack_dataset` with `bfd_split`, which drops nothing
either, over a Dataset that is made beforehand, in its own batches of 1,000 documents; and over all documents at once,
which is what ours does. The order alternates. Memory is the most that a process held resident which did nothing but
pack documents that were made as they were asked for.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from brd.composing.packing import TokenRows, pack

VOCABULARY = 49_152
TARGET_SECONDS = 2.0
TARGET_MB = 500


def lengths_of(documents: int, row_tokens: int) -> Any:
    drawn = np.random.default_rng(0).lognormal(np.log(row_tokens / 4), 0.7, documents)
    return np.clip(drawn.astype(np.int64), 4, 4 * row_tokens)


def made(lengths: Any) -> Iterator[list[int]]:
    drawn = np.random.default_rng(1)
    for length in lengths.tolist():
        yield drawn.integers(0, VOCABULARY, length).tolist()


def memory(tokens: int, row_tokens: int, folder: Path) -> tuple[float, float, int]:
    """MB resident before packing, MB at most, and tokens packed."""
    unit = 1024**2 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    lengths = lengths_of(4 * tokens // row_tokens, row_tokens)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]
    meta = pack(made(lengths), folder, row_tokens=row_tokens, vocabulary=VOCABULARY, packing="best_fit")
    assert meta["tokens"] == int(lengths.sum())
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, int(meta["tokens"])


def peers(documents: list[Any], row_tokens: int) -> dict[str, Callable[[], tuple[int, int]]]:
    """TRL's packing of the same documents by name: each call gives the rows and tokens that it made."""
    try:
        from datasets import Dataset, disable_caching, disable_progress_bars
        from trl import pack_dataset
    except ImportError:
        print("TRL is not installed (pip install 'brd[distill]'): no peer")
        return {}
    disable_caching()
    disable_progress_bars()
    dataset = Dataset.from_dict({"input_ids": documents})

    def packed(**options: Any) -> tuple[int, int]:
        found = pack_dataset(dataset, row_tokens, "bfd_split", map_kwargs=options)
        return len(found), int(sum(map(sum, found["seq_lengths"])))

    return {"trl": packed, "trl, all at once": lambda: packed(batch_size=None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    options = parser.parse_args()
    row = options.row_tokens
    lengths = lengths_of(options.documents, row)
    total = int(lengths.sum())
    print(
        f"{options.documents} documents, {total} tokens, {(lengths > row).sum()} of them longer than {row}", flush=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tokens"
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            before, most, tokens = process.submit(memory, options.tokens, row, folder).result()
        print(f"{tokens} tokens: at most {most:.0f} MB resident, {before:.0f} MB of them before", flush=True)
        documents = list(made(lengths))

        def ours() -> tuple[int, int]:
            meta = pack(documents, folder, row_tokens=row, vocabulary=VOCABULARY, packing="best_fit")
            return meta["rows"], int(TokenRows(folder).filled.sum())

        ways = {"ours": ours, **peers(documents, row)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name in ways if number % 2 == 0 else reversed(list(ways)):
                start = time.perf_counter()
                rows, kept = ways[name]()
                seconds[name].append(time.perf_counter() - start)
                print(
                    f"round {number + 1}: {name}: {seconds[name][-1]:.2f} s, {rows} rows, "
                    f"{1 - kept / (rows * row):.3%} padding, {total - kept} tokens dropped",
                    flush=True,
                )
                assert name != "ours" or kept == total
    took = statistics.median(seconds["ours"])
    peer = seconds.get("trl")
    ratios = [a / b for a, b in zip(peer or [TARGET_SECONDS] * options.rounds, seconds["ours"], strict=True)]
    print(f"{took:.2f} s, {'below' if took < TARGET_SECONDS else 'ABOVE'} {TARGET_SECONDS:g} s")
    print(f"at most {most:.0f} MB, {'below' if most < TARGET_MB else 'ABOVE'} {TARGET_MB} MB")
    print(
        json.dumps(
            {
                "name": "packing",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "target": 1.0,
                "what": f"seconds of {'TRL (bfd_split)' if peer else f'the aim ({TARGET_SECONDS:g} s)'} over ours to "
                f"pack {options.documents} documents whole into rows of {row} ({took:.2f} s, no token dropped; "
                f"{tokens} tokens in {most:.0f} MB)",
            }
        )
    )


if __name__ == "__main__":
    main()
