"""Put what a run found where others can use it.

    python benchmarks/publish.py RUN OUT

Writes into OUT: readings.parquet (a recipe's `reading.known` takes it); scores_a/ and scores_b/, of each half a folder
an arm and the teacher's (a recipe's `evaluation.cache` takes one); state/, the run's manifests and figures; and its
summary.json, run.json, recipe.yaml and report.html. Readings quote the sentences that were read. Scores name items by
number, and where an item's candidates are its own, their letters are masked: length is what scores need of them.
"""

import os
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from brd import recipe
from brd.reading.reader import Readings
from brd.reading.store import export

NOTE = (
    "Readings by Qwen2.5-Coder-1.5B-Instruct (Apache-2.0). The sentences are quoted from English Wikipedia (CC BY-SA), "
    "WikiText-2 (CC BY-SA), the English Web Treebank (CC BY-SA 4.0), OneStopEnglish (CC BY-SA 4.0) and public-domain "
    "books in the editions of Standard Ebooks (CC0); docs/results/README.md names the sources. This file: CC BY-SA 4.0."
)


def main(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    loaded = recipe.load(str(run / "recipe.yaml"))
    readings = Readings(loaded, run / "readings")
    found = {r.key: (r, p.language) for part in (False, True) for p, _, r in readings.all(part)}
    rows = sorted(found.values(), key=lambda row: (row[0].behavior, row[0].document, row[0].paragraph, row[0].sentence))
    count = export(rows, out / "readings.parquet", NOTE)
    print(f"readings.parquet: {count} readings, {(out / 'readings.parquet').stat().st_size / 1e6:.2f} MB")
    for folder in sorted(run.glob("evaluation_?")):
        scores = out / f"scores_{folder.name[-1]}"
        for file in sorted(folder.glob("*/*.parquet")):
            (scores / file.parent.name).mkdir(parents=True, exist_ok=True)
            publish_scores(file, scores / file.parent.name / file.name)
        items = sum(pq.read_metadata(f).num_rows for f in scores.glob("*/*.parquet"))
        size = sum(f.stat().st_size for f in scores.glob("*/*.parquet"))
        print(f"{scores.name}: {items} items, {size / 1e6:.2f} MB")
    for file in [*run.glob("steps/*.json"), *run.glob("reading_skill/*.json"), *run.glob("evaluation_?/*.json")]:
        to = out / "state" / file.relative_to(run)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(placeless(file), encoding="utf-8")
    for name in ("summary.json", "run.json", "recipe.yaml", "report.html"):
        if (run / name).exists():
            (out / name).write_text(placeless(run / name), encoding="utf-8")


def placeless(file: Path) -> str:
    """A text file without where the data lay: nobody's business, and other people's lie elsewhere."""
    text = file.read_text(encoding="utf-8")
    return text.replace(os.environ["BRD_DATA"].rstrip("/"), "$BRD_DATA").replace(str(Path.cwd()), ".")


def publish_scores(file: Path, to: Path) -> None:
    table = pq.read_table(file)
    candidates = table["candidates"].to_pylist()
    if any(row != candidates[0] for row in candidates):
        masked = [[re.sub("[A-Za-z0-9]", "x", text) for text in row] for row in candidates]
        place = table.schema.get_field_index("candidates")
        table = table.set_column(place, table.schema.field(place), pa.array(masked, table.schema.field(place).type))
    pq.write_table(table, to, compression="zstd", compression_level=19)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
