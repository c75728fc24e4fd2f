"""Put what a run found where others can use it.

    python benchmarks/publish.py RUN OUT

Writes into OUT: readings.parquet (a recipe's `reading.known` takes it), teacher_a/ and teacher_b/ (a recipe's
`evaluation.cache` takes OUT), scores.parquet (every arm, item by item), and the run's own summary.json, run.json,
recipe.yaml and report.html. Readings quote the sentences that were read; scores name items by number.
"""

import os
import shutil
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
    found = {r.key: r for part in (False, True) for *_, r in readings.all(part)}
    rows = sorted(found.values(), key=lambda r: (r.behavior, r.document, r.paragraph, r.sentence))
    count = export(rows, out / "readings.parquet", NOTE)
    print(f"readings.parquet: {count} readings, {(out / 'readings.parquet').stat().st_size / 1e6:.2f} MB")
    tables = []
    for folder in sorted(run.glob("evaluation*/*")):
        half = folder.parent.name.removeprefix("evaluation").lstrip("_")
        if not folder.is_dir():
            continue
        if folder.name == "teacher":
            shutil.copytree(folder, out / f"teacher_{half}".rstrip("_"), dirs_exist_ok=True)
        for file in sorted(folder.glob("*.parquet")):
            table = pq.read_table(file).drop_columns(["candidates", "prompt"])
            for name, value in (("task", file.stem.rsplit(".", 1)[0]), ("half", half), ("arm", folder.name)):
                table = table.add_column(0, name, pa.array([value] * len(table)).dictionary_encode())
            tables.append(table.replace_schema_metadata(None))
    if tables:
        pq.write_table(pa.concat_tables(tables), out / "scores.parquet", compression="zstd", compression_level=19)
        print(f"scores.parquet: {sum(map(len, tables))} rows, {(out / 'scores.parquet').stat().st_size / 1e6:.2f} MB")
    for name in ("summary.json", "run.json", "recipe.yaml", "report.html"):
        if (run / name).exists():
            text = (run / name).read_text(encoding="utf-8")
            # Where the data lay is nobody's business, and other people's lie elsewhere.
            (out / name).write_text(text.replace(os.environ["BRD_DATA"].rstrip("/"), "$BRD_DATA"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
