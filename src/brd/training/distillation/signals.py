"""What a teacher thinks of every token of a token file, on disk: at most 120 bytes a token, made once.

Of the teacher's distribution at a position (at the temperature of distillation) are kept the ``top`` likeliest tokens
with their probabilities, and the mass of all others, the tail. Of the tail ``drawn`` tokens are kept too, drawn by
their probabilities with replacement; each stands for an equal share of the tail's mass, so that a cross-entropy taken
over what is kept is right on average (Anshumann et al. 2025, arXiv:2503.16870). With none drawn the tail is one bucket.

Log-probabilities are bytes: steps of 1/16 nat below that of the likeliest token. Together with the tail's mass they
are a whole distribution, so nothing else has to be stored.

Where a student is trained with the documents of a row kept apart, the teacher has read them apart too: those are other
signals than the row's, and hang on where documents end.

A folder of signals is named by a hash of teacher, text and what is kept, so that whatever trains on the same text with
the same teacher shares it. It holds parts of ``PART_ROWS`` rows, each with its SHA-256, and meta.json, written last:
an interruption costs the part in hand.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brd import hardware
from brd.composing.packing import TokenRows
from brd.embedded import file_sha256
from brd.errors import BrdError
from brd.run import fingerprint, read_json, write_json
from brd.training.distillation.teacher import LogitTeacher
from brd.training.documents import beside_ids, row_inputs

BYTES_A_TOKEN = 120
# Half a minute of a teacher that reads a thousand tokens a second.
PART_ROWS = 64
_STEPS_A_NAT = 16
# Vocabularies beyond two bytes need a third for each id.
_NARROW = 2**16
# Tokens of a forward pass of the teacher, and positions whose distributions are held at once.
_BATCH_TOKENS, _CHUNK = 2048, 256


@dataclass(frozen=True, slots=True)
class About:
    """All that signals rest on: ``teacher`` (its identity), ``tokens`` (SHA-256 of the token file), its shape, the
    tokenizer's ``vocabulary``, and what is kept. ``documents`` is the SHA-256 of where documents end if the teacher
    is to read each by itself; None where it reads rows."""

    teacher: dict[str, str]
    tokens: str
    rows: int
    row_tokens: int
    vocabulary: int
    top: int
    drawn: int
    temperature: float
    documents: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What stands in meta.json; of rows as it stood there before documents were kept apart."""
        return {key: value for key, value in asdict(self).items() if key != "documents" or value is not None}

    @property
    def name(self) -> str:
        return fingerprint("signals", self.facts)

    @property
    def record(self) -> np.dtype[Any]:
        """One position: ``low`` and ``high`` bytes of the ids (the likeliest first, then those drawn), ``fall`` in
        steps below the likeliest, the ``tail``'s mass."""
        ids = self.top + self.drawn
        fields: list[tuple[str, str, tuple[int, ...]]] = [("low", "<u2", (ids,)), ("fall", "u1", (self.top,))]
        if self.vocabulary > _NARROW:
            fields.append(("high", "u1", (ids,)))
        return np.dtype([*fields, ("tail", "<f4", ())])


def check_kept(about: About) -> None:
    """BrdError where what is to be kept is longer than ``BYTES_A_TOKEN``, or more than there is."""
    if about.top >= about.vocabulary:
        raise BrdError(f"distillation.top: {about.top} of a vocabulary of {about.vocabulary}; it should be smaller")
    if (size := about.record.itemsize) > BYTES_A_TOKEN:
        raise BrdError(
            f"distillation.top, distillation.drawn: {about.top} and {about.drawn} tokens take {size} bytes a token "
            f"with this vocabulary of {about.vocabulary}; keep fewer, {BYTES_A_TOKEN} is the limit"
        )


def pack_positions(logs: torch.Tensor, about: About, generator: torch.Generator) -> Any:
    """Records of log-probabilities [N, V] in float32."""
    values, ids = logs.topk(about.top, dim=1)
    rest = logs.exp().scatter_(1, ids, 0.0)
    tail = rest.sum(1)
    if about.drawn:
        # Where nothing is left any may be drawn: its share is 0.
        rest += (tail <= 0).float()[:, None]
        ids = torch.cat([ids, torch.multinomial(rest, about.drawn, replacement=True, generator=generator)], 1)
    fall = ((values[:, :1] - values) * _STEPS_A_NAT).round().clamp(max=255)
    found = np.zeros(len(logs), dtype=about.record)
    numbers = ids.cpu().numpy()
    found["low"], found["fall"], found["tail"] = numbers & 0xFFFF, fall.cpu().numpy(), tail.clamp(0, 1).cpu().numpy()
    if "high" in (about.record.names or ()):
        found["high"] = numbers >> 16
    return found


def unpack_positions(records: Any) -> dict[str, torch.Tensor]:
    """What of some positions [N] was kept: ``teacher_ids`` and ``teacher_probabilities`` [N, top + drawn], and
    ``teacher_tail`` [N], the mass of the bucket: 0 where tokens were drawn for it. Probabilities add up to 1."""
    ids = records["low"].astype(np.int64)
    if "high" in records.dtype.names:
        ids |= records["high"].astype(np.int64) << 16
    tail = torch.from_numpy(records["tail"].astype(np.float32))
    found = torch.softmax(torch.from_numpy(records["fall"].astype(np.float32)) / -_STEPS_A_NAT, 1)
    found = found * (1 - tail)[:, None]
    if drawn := ids.shape[1] - found.shape[1]:
        found = torch.cat([found, (tail / drawn)[:, None].expand(-1, drawn)], 1)
        tail = torch.zeros_like(tail)
    return {"teacher_ids": torch.from_numpy(ids), "teacher_probabilities": found, "teacher_tail": tail}


class Signals:
    """The signals of a token file, read through memory maps. Indexing by row gives what ``unpack_positions`` does.

    Raises BrdError for a folder that is not whole, or holds signals of another text, teacher or kind. A part's checksum
    is taken when a row of it is first asked for.
    """

    def __init__(self, folder: Path, about: About) -> None:
        meta = read_json(folder / "meta.json")
        if not isinstance(meta, dict) or "parts" not in meta:
            raise BrdError(f"{folder}: no whole signals of a teacher; train again, which makes what is missing")
        if different := [key for key, value in asdict(about).items() if meta.get(key) != value]:
            raise BrdError(f"{folder}: signals of another {different[0]}; move the folder away and train again")
        self._folder, self._about, self._sums = folder, about, meta["parts"]
        self._parts: dict[int, Any] = {}

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        part, within = divmod(row, PART_ROWS)
        if part not in self._parts:
            path = part_path(self._folder, part)
            if not path.is_file() or file_sha256(path) != self._sums[part]:
                raise BrdError(f"{path}: damaged or missing; delete it and {self._folder / 'meta.json'}, train again")
            self._parts[part] = np.memmap(path, dtype=self._about.record, mode="r").reshape(-1, self._about.row_tokens)
        return unpack_positions(self._parts[part][within])

    def beside(self, row: int, place: int) -> dict[str, torch.Tensor]:
        """What the row brings along at whatever place of the training."""
        return self[row]


def part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.bin"


def signals_of(
    tokens: Path,
    root: Path,
    about: About,
    teacher: Callable[[], LogitTeacher],
    progress: Callable[[str, int, int, str], None] | None = None,
) -> Signals:
    """The signals of a token file, from a folder in ``root``; what is missing there is asked of the teacher.

    ``teacher`` is called only where something is missing. ``progress`` is told (what, rows done, rows, "").
    """
    check_kept(about)
    folder, parts = root / about.name, -(-about.rows // PART_ROWS)
    # Also where it is torn: what is whole of the parts shows by itself.
    if not read_json(folder / "meta.json"):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [part for part in range(parts) if _whole(folder, part) is None]
        if missing:
            rows, asked = TokenRows(tokens), teacher()
            for number, part in enumerate(missing):
                if progress:
                    done = (parts - len(missing) + number) * PART_ROWS
                    progress("teacher's distributions", min(done, about.rows), about.rows, "")
                _write(folder, part, about, _of_rows(rows, part, about, asked))
        write_json(folder / "meta.json", {**about.facts, "parts": [_whole(folder, part) for part in range(parts)]})
    return Signals(folder, about)


def _of_rows(rows: TokenRows, part: int, about: About, teacher: LogitTeacher) -> Any:
    apart = None if about.documents is None else teacher.apart
    numbers = range(part * PART_ROWS, min((part + 1) * PART_ROWS, about.rows))
    # By its part alone, so that parts made after an interruption are those that would have been made before.
    generator = torch.Generator(hardware.device()).manual_seed(part)
    at_once, found = max(1, _BATCH_TOKENS // about.row_tokens), []
    for first in range(0, len(numbers), at_once):
        asked = [row_inputs(rows, number, apart) for number in numbers[first : first + at_once]]
        batch = {name: torch.stack([row[name] for row in asked]).to(hardware.device()) for name in asked[0]}
        states = teacher.states(batch["input_ids"], **beside_ids(batch)).flatten(0, 1)
        for at in range(0, len(states), _CHUNK):
            logs = teacher.log_probabilities(states[at : at + _CHUNK], about.temperature)
            found.append(pack_positions(logs, about, generator))
    return np.concatenate(found)


def _write(folder: Path, part: int, about: About, records: Any) -> None:
    """The part's checksum is written behind it, so that a part with one is whole."""
    path = part_path(folder, part)
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as file:
        # Not numpy's own way, which tells of a full disk without saying that it is one.
        file.write(records.data)
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".json").unlink(missing_ok=True)
    os.replace(scratch, path)
    size = len(records) * about.record.itemsize
    if path.stat().st_size != size:
        raise BrdError(f"{path}: {path.stat().st_size} bytes were written instead of {size}; is the disk full?")
    write_json(path.with_suffix(".json"), {"sha256": file_sha256(path)})


def _whole(folder: Path, part: int) -> str | None:
    """The checksum of a part that is there as it was written."""
    path = part_path(folder, part)
    noted = read_json(path.with_suffix(".json"))
    if not path.is_file() or not isinstance(noted, dict) or noted.get("sha256") != file_sha256(path):
        return None
    return str(noted["sha256"])


def about_signals(
    tokens: Path, teacher: dict[str, str], vocabulary: int, kept: Any, by_document: bool = False
) -> About:
    """What signals of a token file rest on; ``kept`` is the recipe's section ``distillation``. ``by_document`` has the
    teacher read each document by itself."""
    rows = TokenRows(tokens)
    rows.check()
    if by_document:
        # Which files tell where documents end, and what to do about those that do not, it knows.
        rows.ends(0)
    meta = rows.meta
    return About(
        teacher=teacher,
        tokens=file_sha256(tokens / "tokens.bin"),
        rows=meta["rows"],
        row_tokens=meta["row_tokens"],
        vocabulary=vocabulary,
        top=kept.top,
        drawn=kept.drawn,
        temperature=kept.temperature,
        documents=file_sha256(tokens / "documents.bin") if by_document else None,
    )
