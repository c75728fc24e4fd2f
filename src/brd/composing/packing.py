"""Token files: documents laid end to end into rows of equal length, memory-mapped.

Nothing is lost and nothing is cut but at row ends: every token of every document stands in the file once, and the
last row is filled up with the beginning of the stream, so that all rows are full and every arm can be given exactly
the same number of trained tokens.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brd.errors import BrdError


def pack(
    documents: Iterable[list[int]],
    folder: Path,
    *,
    row_tokens: int,
    vocabulary: int,
    rows: int | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``tokens.bin`` and ``meta.json`` into ``folder``; returns the meta.

    ``documents`` are token ids. Without ``rows`` all documents are packed; with it, exactly ``rows`` rows: documents
    beyond are not asked for, and when the stream ends early it is repeated (``passes`` says how many times it was
    gone through). Raises BrdError when there is no token.
    """
    dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    limit = None if rows is None else rows * row_tokens
    written = 0
    with (scratch / "tokens.bin").open("wb") as file:
        for document in documents:
            if limit is not None and written + len(document) > limit:
                document = document[: limit - written]
            np.asarray(document, dtype=dtype).tofile(file)
            written += len(document)
            if written == limit:
                break
    if not written:
        shutil.rmtree(scratch)
        raise BrdError(f"{folder}: the lessons are empty; nothing to train on")
    unique, total = written, limit or -(-written // row_tokens) * row_tokens
    _repeat(scratch / "tokens.bin", unique, total, dtype)
    meta = {
        "rows": total // row_tokens,
        "row_tokens": row_tokens,
        "tokens": total,
        "unique_tokens": unique,
        "passes": round(total / unique, 4),
        "dtype": dtype.name,
        **(about or {}),
    }
    (scratch / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)
    return meta


def _repeat(path: Path, unique: int, total: int, dtype: np.dtype[Any]) -> None:
    missing = total - unique
    if missing <= 0:
        return
    source = np.memmap(path, dtype=dtype, mode="r", shape=(unique,))
    with path.open("ab") as file:
        while missing > 0:
            piece = source[: min(missing, unique)]
            piece.tofile(file)
            missing -= len(piece)


class TokenRows:
    """The rows of a token file, read through a memory map. Indexing gives an int64 array of ``row_tokens`` ids."""

    def __init__(self, folder: Path) -> None:
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
            shape = (self.meta["rows"], self.meta["row_tokens"])
            dtype = np.dtype(self.meta["dtype"])
            size = (folder / "tokens.bin").stat().st_size
            if size != shape[0] * shape[1] * dtype.itemsize:
                raise BrdError(f"{folder / 'tokens.bin'}: has {size} bytes, not what meta.json says; compose again")
            self._rows = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r", shape=shape)
        except (OSError, json.JSONDecodeError, KeyError):
            raise BrdError(f"{folder}: no readable token file; run `brd compose` again") from None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        return np.asarray(self._rows[index], dtype=np.int64)


def encode(texts: Iterable[str], tokenizer: Any, batch: int = 256) -> Iterator[list[int]]:
    """Token ids of each text, ended by EOS (paper: by paragraph). No BOS: rows are a stream of documents."""
    pending: list[str] = []

    def flush() -> Iterator[list[int]]:
        if pending:
            for ids in tokenizer(pending, add_special_tokens=False)["input_ids"]:
                yield [*ids, tokenizer.eos_token_id]
            pending.clear()

    for text in texts:
        pending.append(text)
        if len(pending) == batch:
            yield from flush()
    yield from flush()
