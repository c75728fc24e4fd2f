import errno
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brd.composing.packing import TokenRows, encode, pack
from brd.errors import BrdError

documents = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=20)
per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def flat(folder: Path) -> list[int]:
    rows = TokenRows(folder)
    return np.concatenate([rows[n] for n in range(len(rows))]).tolist()


@per_example
@given(documents=documents, row_tokens=st.integers(1, 50))
def test_every_token_of_every_document_is_packed_once_in_order(
    tmp_path: Path, documents: list[list[int]], row_tokens: int
) -> None:
    meta = pack(documents, tmp_path / "p", row_tokens=row_tokens, vocabulary=100)
    stream = [token for document in documents for token in document]
    packed = flat(tmp_path / "p")
    assert packed[: len(stream)] == stream
    # What fills the last row is the beginning of the stream again, and less than a row.
    filling = packed[len(stream) :]
    assert len(filling) < row_tokens
    assert filling == (stream * row_tokens)[: len(filling)]
    assert (meta["tokens"], meta["unique_tokens"]) == (len(packed), len(stream))


@per_example
@given(documents=documents, row_tokens=st.integers(1, 50), rows=st.integers(1, 12))
def test_a_wanted_number_of_rows_is_met_exactly(
    tmp_path: Path, documents: list[list[int]], row_tokens: int, rows: int
) -> None:
    meta = pack(documents, tmp_path / "p", row_tokens=row_tokens, vocabulary=100, rows=rows)
    stream = [token for document in documents for token in document]
    wanted = rows * row_tokens
    assert flat(tmp_path / "p") == (stream * (wanted // len(stream) + 1))[:wanted]
    assert meta["passes"] == pytest.approx(wanted / min(len(stream), wanted), abs=1e-3)


def test_documents_beyond_the_wanted_rows_are_not_asked_for(tmp_path: Path) -> None:
    def endless() -> Any:
        while True:
            yield [1, 2, 3]

    assert pack(endless(), tmp_path / "p", row_tokens=4, vocabulary=9, rows=2)["rows"] == 2


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_large_vocabularies_keep_their_ids(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    meta = pack([[vocabulary - 1, 0]], tmp_path / "p", row_tokens=2, vocabulary=vocabulary)
    assert meta["dtype"] == dtype
    assert flat(tmp_path / "p") == [vocabulary - 1, 0]


def test_no_token_at_all_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match="empty"):
        pack([], tmp_path / "p", row_tokens=4, vocabulary=9)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_or_missing_token_file_is_named(tmp_path: Path) -> None:
    pack([[1, 2, 3, 4]], tmp_path / "p", row_tokens=2, vocabulary=9)
    (tmp_path / "p" / "tokens.bin").write_bytes(b"\1\0")
    with pytest.raises(BrdError, match=r"tokens.bin: has 2 bytes"):
        TokenRows(tmp_path / "p")
    with pytest.raises(BrdError, match="compose"):
        TokenRows(tmp_path / "nowhere")


def test_a_changed_token_is_found_by_its_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    pack([[1, 2, 3, 4]], folder, row_tokens=2, vocabulary=9)
    TokenRows(folder).check()
    for name in ("tokens.bin", "documents.bin"):
        whole = (folder / name).read_bytes()
        # What a power cut may leave: as long as it was, without its last bytes.
        (folder / name).write_bytes(whole[:-1] + (b"\0" if whole[-1] else b"\1"))
        with pytest.raises(BrdError, match=f"{name}: .*run `brd compose` again"):
            TokenRows(folder).check()
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize(
    "torn", [b"", b"{", b"[]", b"1", b"\xff\xfe", b'{"rows": 0, "row_tokens": 2, "dtype": "uint16"}']
)
def test_torn_counts_are_named(tmp_path: Path, torn: bytes) -> None:
    pack([[1, 2, 3, 4]], tmp_path / "p", row_tokens=2, vocabulary=9)
    (tmp_path / "p" / "meta.json").write_bytes(torn)
    with pytest.raises(BrdError, match=r"p: no readable token file|p/tokens\.bin: has 8 bytes"):
        TokenRows(tmp_path / "p")


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_a_full_disk_is_told_as_such_and_what_was_there_stays(tmp_path: Path, packing: Any) -> None:
    pack([[1, 2]], tmp_path / "p", row_tokens=2, vocabulary=9)
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large") as full:
            pack([[1] * 8192], tmp_path / "p", row_tokens=64, vocabulary=9, packing=packing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert full.value.errno == errno.EFBIG
    assert flat(tmp_path / "p") == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_texts_end_with_eos(tokenizer: Any) -> None:
    one, two = encode(["Oslo is cold.", "Yes."], tokenizer, batch=1)
    assert one[-1] == two[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(one[:-1]) == "Oslo is cold."
