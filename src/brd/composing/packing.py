"""Token files: documents in rows of equal length, memory-mapped, with the places where documents end.

Packed as a ``stream``, documents are laid end to end and cut at row ends, and the last row is filled up with the
beginning of the stream: all rows are full. Packed by ``best_fit``, a document is whole in one row, and a row may end in
padding; only a document longer than a row is split, into full rows and a rest that is packed like a document. Either
way nothing is lost: every token of every document stands in the file once.
"""

import hashlib
import json
import os
import shutil
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from brd.composing.best_fit import Numbers, best_fit, pieces, spread
from brd.errors import BrdError

Packing = Literal["stream", "best_fit"]

# Tokens that are written at once.
_BLOCK = 1 << 18


def pack(
    documents: Iterable[list[int]],
    folder: Path,
    *,
    row_tokens: int,
    vocabulary: int,
    packing: Packing = "stream",
    rows: int | None = None,
    fill: float = 1.0,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``tokens.bin``, ``documents.bin`` and ``meta.json`` into ``folder``; returns the meta.

    ``documents`` are token ids below ``vocabulary``. Without ``rows`` all documents are packed; with it, as many as
    fill ``rows`` rows: documents beyond are not asked for, and when they end early they are repeated (``passes`` says
    how many times they were gone through). A stream fills its rows exactly. By best fit a row holds at most the share
    ``fill`` of its tokens on average, which makes it comparable with a file that has padding; where that many tokens
    do not fit into ``rows`` whole, the emptiest rows are left out.
    Raises BrdError when there is no token, or an id that the vocabulary has not.
    """
    dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    share = fill if packing == "best_fit" else 1.0
    limit = None if rows is None else max(1, round(rows * row_tokens * share))
    try:
        ends = _write(documents, scratch / "tokens.bin", dtype, vocabulary, limit)
        if not len(ends):
            raise BrdError(f"{folder}: the lessons are empty; nothing to train on")
        unique = int(ends[-1])
        if packing == "stream":
            total = limit or -(-unique // row_tokens) * row_tokens
            _repeat(scratch / "tokens.bin", unique, total, dtype)
            ends = _cut_at_rows(_repeated(ends, total), row_tokens)
            split: dict[str, int] = {}
        else:
            lengths = np.diff(_repeated(ends, limit or unique), prepend=0)
            split = {"split": int((lengths > row_tokens).sum())}
            ends = _fit(scratch / "tokens.bin", lengths, unique, row_tokens, dtype, rows, fill)
            total = int(_filled(ends, row_tokens).sum())
        with (scratch / "documents.bin").open("wb") as file:
            _put(file, ends)
        meta = {
            "rows": -(-int(ends[-1]) // row_tokens),
            "row_tokens": row_tokens,
            "tokens": total,
            "unique_tokens": min(unique, total),
            "passes": round(total / min(unique, total), 4),
            "dtype": dtype.name,
            "packing": packing,
            "documents": len(ends),
            **split,
            "vocabulary": vocabulary,
            **(about or {}),
            "sums": {name: _synced(scratch / name) for name in ("tokens.bin", "documents.bin")},
        }
        (scratch / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(scratch)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)
    return meta


def _write(
    documents: Iterable[list[int]], path: Path, dtype: np.dtype[Any], vocabulary: int, limit: int | None
) -> Numbers:
    """Documents end to end, up to ``limit`` tokens; returns where each ends."""
    ends, written, block = array("q"), 0, array("I")

    def refuse(token: int) -> BrdError:
        return BrdError(f"{path.parent}: token id {token} is none of a vocabulary of {vocabulary} tokens")

    with path.open("wb") as file:

        def flush() -> None:
            tokens = np.array(block, dtype=np.uint32)
            if len(tokens) and (largest := int(tokens.max())) >= vocabulary:
                raise refuse(largest)
            _put(file, tokens.astype(dtype))

        for document in documents:
            if limit is not None and written + len(document) > limit:
                document = document[: limit - written]
            if not document:
                continue
            try:
                block.extend(document)
            except OverflowError:
                raise refuse(next(token for token in document if not 0 <= token < vocabulary)) from None
            written += len(document)
            ends.append(written)
            if len(block) >= _BLOCK:
                flush()
                block = array("I")
            if written == limit:
                break
        flush()
    return np.array(ends, dtype=np.int64)


def _repeat(path: Path, unique: int, total: int, dtype: np.dtype[Any]) -> None:
    missing = total - unique
    if missing <= 0:
        return
    source = np.memmap(path, dtype=dtype, mode="r", shape=(unique,))
    with path.open("ab") as file:
        while missing > 0:
            piece = source[: min(missing, unique)]
            _put(file, piece)
            missing -= len(piece)


def _repeated(ends: Numbers, total: int) -> Numbers:
    """Where documents end that are gone through again up to ``total`` tokens; the last may be cut there."""
    unique = int(ends[-1])
    passes = -(-total // unique)
    again = (ends + unique * np.arange(passes)[:, None]).ravel()
    return np.append(again[again < total], total)


def _cut_at_rows(ends: Numbers, row_tokens: int) -> Numbers:
    return np.union1d(ends, np.arange(row_tokens, ends[-1] + 1, row_tokens))


def _fit(
    path: Path,
    lengths: Numbers,
    unique: int,
    row_tokens: int,
    dtype: np.dtype[Any],
    rows: int | None,
    fill: float,
) -> Numbers:
    """Put the documents that lie end to end in a file into rows, in place; returns where they end there.

    ``lengths`` are those of all documents, of the repeated ones too.
    """
    # The last of the repeated documents may be cut, but each starts where one of the file does.
    starts, lengths = pieces((np.cumsum(lengths) - lengths) % unique, lengths, row_tokens)
    row_of = best_fit(lengths, row_tokens)
    found = int(row_of.max()) + 1
    wanted = rows if rows is not None else round(int(lengths.sum()) / (row_tokens * fill))
    if found < wanted:
        row_of = spread(lengths, row_tokens, wanted)
    elif rows is not None and found > rows:
        emptiest = np.argsort(np.bincount(row_of, weights=lengths), kind="stable")[: found - rows]
        kept = ~np.isin(row_of, emptiest)
        starts, lengths, row_of = starts[kept], lengths[kept], row_of[kept]
    # Rows and the documents in them in the order in which the documents came.
    _, first, found_as = np.unique(row_of, return_index=True, return_inverse=True)
    row_of = np.argsort(np.argsort(first)).astype(np.int64)[found_as]
    order = np.argsort(row_of, kind="stable")
    starts, lengths, row_of = starts[order], lengths[order], row_of[order]
    before = np.cumsum(lengths) - lengths
    opens = np.flatnonzero(np.diff(row_of, prepend=-1))
    places = row_of * row_tokens + before - np.repeat(before[opens], np.diff(opens, append=len(row_of)))
    loose = path.with_name("loose.bin")
    path.rename(loose)
    _gather(loose, path, starts, lengths, places, row_tokens, dtype)
    loose.unlink()
    return places + lengths


def _gather(
    source: Path, target: Path, starts: Numbers, lengths: Numbers, places: Numbers, row_tokens: int, dtype: Any
) -> None:
    """Write rows with the tokens from ``starts`` on at ``places`` (ascending) and zeros elsewhere."""
    tokens = np.asarray(np.memmap(source, dtype=dtype, mode="r"))
    rows = int(places[-1]) // row_tokens + 1
    block = max(1, _BLOCK // row_tokens)
    with target.open("wb") as file:
        for first in range(0, rows, block):
            size = min(block, rows - first) * row_tokens
            begin = first * row_tokens
            filled = np.zeros(size, dtype=dtype)
            here = slice(*np.searchsorted(places, [begin, begin + size]))
            for start, length, place in zip(
                starts[here].tolist(), lengths[here].tolist(), (places[here] - begin).tolist(), strict=True
            ):
                filled[place : place + length] = tokens[start : start + length]
            _put(file, filled)


def _put(file: IO[bytes], numbers: npt.NDArray[Any]) -> None:
    """Write an array; numpy's own way tells of a full disk without saying that it is one."""
    file.write(np.ascontiguousarray(numbers).data)


def _synced(path: Path) -> int:
    """The checksum of a file, which is brought to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sum(path)


def _sum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            found = zlib.crc32(piece, found)
    return found


def _filled(ends: Numbers, row_tokens: int) -> Numbers:
    """The tokens of each row."""
    rows = np.arange(-(-int(ends[-1]) // row_tokens))
    return ends[np.searchsorted(ends, (rows + 1) * row_tokens, side="right") - 1] - rows * row_tokens


class TokenRows:
    """The rows of a token file, read through a memory map. Indexing gives an int64 array of ``row_tokens`` ids.

    Raises BrdError where the files are missing, torn, or do not belong together; ``check`` reads all of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
            shape = (self.meta["rows"], self.meta["row_tokens"])
            dtype = np.dtype(self.meta["dtype"])
            _check_size(folder / "tokens.bin", shape[0] * shape[1] * dtype.itemsize)
            self._rows = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r", shape=shape)
            self._ends: Numbers | None = None
            # Files of earlier versions have no ends of documents; their rows are full.
            if "documents" in self.meta:
                _check_size(folder / "documents.bin", self.meta["documents"] * 8)
                self._ends = np.asarray(np.memmap(folder / "documents.bin", dtype=np.int64, mode="r"))
        # Bytes that are no text, and files of no length, are errors of values.
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise BrdError(f"{folder}: no readable token file; run `brd compose` again") from None
        if self._ends is None:
            self.filled: Numbers = np.full(shape[0], shape[1], dtype=np.int64)
            return
        if self._ends[0] < 1 or self._ends[-1] > shape[0] * shape[1] or not (np.diff(self._ends) > 0).all():
            raise BrdError(
                f"{folder / 'documents.bin'}: the ends of documents are not in order; run `brd compose` again"
            )
        self.filled = _filled(self._ends, shape[1])
        if len(self.filled) != shape[0] or self.filled.min() < 1 or self.filled.sum() != self.meta["tokens"]:
            raise BrdError(
                f"{folder / 'documents.bin'}: does not belong to the tokens beside it; run `brd compose` again"
            )

    def check(self) -> None:
        """BrdError where a file's checksum is another than was noted; those of earlier versions have none."""
        for name, wanted in self.meta.get("sums", {}).items():
            if _sum(self._folder / name) != wanted:
                raise BrdError(f"{self._folder / name}: is not as it was written; run `brd compose` again")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        return np.asarray(self._rows[index], dtype=np.int64)

    def ends(self, index: int) -> Numbers:
        """Where the documents of a row end; from the last of these on the row is padding."""
        if self._ends is None:
            raise BrdError(
                f"{self._folder}: an earlier version composed it, without the ends of documents; "
                "delete this folder and run `brd compose` again"
            )
        begin = index * self.meta["row_tokens"]
        first, last = np.searchsorted(self._ends, [begin, begin + self.meta["row_tokens"]], side="right")
        found: Numbers = self._ends[first:last] - begin
        return found


def _check_size(path: Path, wanted: int) -> None:
    if (size := path.stat().st_size) != wanted:
        raise BrdError(f"{path}: has {size} bytes, not what meta.json says; run `brd compose` again")


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


def tokenizer_mark(tokenizer: Any) -> str:
    """What tells a tokenizer from others, whatever file or version of a library it comes from: which id each token of
    its vocabulary has, and which one ends a text."""
    known = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
