"""Best fit: documents stay whole, nothing is lost, and what is written is what a plain packer in memory gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brd.composing.best_fit import best_fit, spread
from brd.composing.packing import Packing, TokenRows, pack
from brd.errors import BrdError

documents = st.lists(st.lists(st.integers(0, 99), max_size=40), min_size=1, max_size=30).filter(any)
per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
VOCABULARY = 70_000


def marked(documents: list[list[int]]) -> list[list[int]]:
    """The same with ids that tell where each token is from: no two are equal."""
    numbers = iter(range(1, VOCABULARY))
    return [[next(numbers) for _ in document] for document in documents]


def in_rows(folder: Path) -> list[list[list[int]]]:
    """The documents of each row, and what is behind them must be padding."""
    rows, found = TokenRows(folder), []
    for number in range(len(rows)):
        ids, ends = rows[number].tolist(), rows.ends(number).tolist()
        found.append([ids[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)])
        assert rows.filled[number] == ends[-1]
        assert not any(ids[ends[-1] :])
    return found


def whole(documents: list[list[int]], row_tokens: int) -> list[list[int]]:
    """Documents as rows can hold them: of one that is longer, full rows first."""
    return [d[at : at + row_tokens] for d in documents for at in range(0, len(d), row_tokens)]


def plain_best_fit(lengths: list[int], row_tokens: int) -> list[list[int]]:
    """Best-fit decreasing as it is told: the longest first, into the fullest row that has room."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= row_tokens]
        max(fitting, key=sum).append(length) if fitting else rows.append([length])
    return rows


@per_example
@given(documents=documents, row_tokens=st.integers(1, 50))
def test_every_token_stands_once_and_no_document_is_split_that_fits_a_row(
    tmp_path: Path, documents: list[list[int]], row_tokens: int
) -> None:
    documents = marked(documents)
    meta = pack(documents, tmp_path / "p", row_tokens=row_tokens, vocabulary=VOCABULARY, packing="best_fit")
    found = in_rows(tmp_path / "p")
    assert sorted(d for row in found for d in row) == sorted(whole(documents, row_tokens))
    # Rows, and the documents in them, come as the documents did.
    assert [row[0][0] for row in found] == sorted(row[0][0] for row in found)
    assert all(row == sorted(row) for row in found)
    assert meta["tokens"] == meta["unique_tokens"] == sum(map(len, documents))
    assert meta["rows"] == len(found)
    assert meta["split"] == sum(len(d) > row_tokens for d in documents)


@per_example
@given(documents=documents, row_tokens=st.integers(1, 50))
def test_written_streaming_it_is_the_packing_of_a_plain_packer_in_memory(
    tmp_path: Path, documents: list[list[int]], row_tokens: int
) -> None:
    pack(iter(documents), tmp_path / "p", row_tokens=row_tokens, vocabulary=100, packing="best_fit")
    lengths = [len(d) for d in whole(documents, row_tokens)]
    # Equally full rows are one as good as the other, so what rows hold is compared by their tokens.
    expected = plain_best_fit(lengths, row_tokens)
    assert sorted(TokenRows(tmp_path / "p").filled.tolist()) == sorted(map(sum, expected))


@per_example
@given(documents=documents, row_tokens=st.integers(1, 50), packing=st.sampled_from(["stream", "best_fit"]))
def test_the_same_documents_give_the_same_files(
    tmp_path: Path, documents: list[list[int]], row_tokens: int, packing: Packing
) -> None:
    for name in ("a", "b"):
        pack(iter(documents), tmp_path / name, row_tokens=row_tokens, vocabulary=100, packing=packing)
    for file in ("tokens.bin", "documents.bin", "meta.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@per_example
@given(documents=documents, row_tokens=st.integers(1, 50), rows=st.one_of(st.none(), st.integers(1, 8)))
def test_a_stream_knows_where_its_documents_end(
    tmp_path: Path, documents: list[list[int]], row_tokens: int, rows: int | None
) -> None:
    pack(documents, tmp_path / "p", row_tokens=row_tokens, vocabulary=100, rows=rows)
    found = in_rows(tmp_path / "p")
    total, wanted, at = sum(map(sum, [[len(d) for d in row] for row in found])), set[int](), 0
    while at < total:
        for document in filter(None, documents):
            at = min(at + len(document), total)
            wanted.add(at)
    cuts = np.cumsum([len(d) for row in found for d in row])
    assert set(cuts.tolist()) == wanted | set(range(row_tokens, total + 1, row_tokens))


@per_example
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60), more=st.integers(0, 20))
def test_spread_rows_hold_the_same_documents_more_evenly(lengths: list[int], more: int) -> None:
    sizes = np.array(lengths)
    row_of = best_fit(sizes, 20)
    rows = min(int(row_of.max()) + 1 + more, len(lengths))
    spread_rows = np.bincount(spread(sizes, 20, rows), weights=sizes)
    assert len(spread_rows) == rows
    assert spread_rows.sum() == sum(lengths)
    assert spread_rows.min() > 0
    assert spread_rows.max() <= 20


def test_a_wanted_number_of_rows_is_filled_as_much_as_is_said(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    made = [[1] * int(n) for n in drawn.integers(2, 30, 300)]
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield made[asked % len(made)]

    meta = pack(endless(), tmp_path / "a", row_tokens=64, vocabulary=9, packing="best_fit", rows=50, fill=0.9)
    assert (meta["rows"], meta["tokens"], meta["passes"]) == (50, 50 * 64 * 0.9, 1.0)
    assert asked < 300
    # Nearly every row holds as much.
    filled = TokenRows(tmp_path / "a").filled
    assert np.abs(filled - filled.mean()).mean() < 5
    # What is scarce is gone through again.
    meta = pack(made[:20], tmp_path / "b", row_tokens=64, vocabulary=9, packing="best_fit", rows=50, fill=0.9)
    assert (meta["rows"], meta["tokens"]) == (50, 50 * 64 * 0.9)
    assert meta["passes"] == pytest.approx(50 * 64 * 0.9 / sum(map(len, made[:20])), abs=1e-3)
    # What does not fit is left out, never cut.
    meta = pack([[1] * 40] * 100, tmp_path / "c", row_tokens=64, vocabulary=9, packing="best_fit", rows=50)
    assert (meta["rows"], meta["tokens"]) == (50, 50 * 40)


def test_empty_documents_and_a_document_of_many_rows(tmp_path: Path) -> None:
    meta = pack([[], [5] * 70, [], [6] * 3], tmp_path / "p", row_tokens=32, vocabulary=9, packing="best_fit")
    assert in_rows(tmp_path / "p") == [[[5] * 32], [[5] * 32], [[5] * 6, [6] * 3]]
    assert meta["split"] == 1
    kinds: tuple[Packing, ...] = ("stream", "best_fit")
    for packing in kinds:
        with pytest.raises(BrdError, match="the lessons are empty"):
            pack([[], []], tmp_path / "q", row_tokens=32, vocabulary=9, packing=packing)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("token", [9, -1, 70_000])
def test_ids_that_the_vocabulary_has_not_are_refused(tmp_path: Path, token: int) -> None:
    with pytest.raises(BrdError, match=f"token id {token} is none of a vocabulary of 9 tokens"):
        pack([[1, token]], tmp_path / "p", row_tokens=2, vocabulary=9)
    assert list(tmp_path.iterdir()) == []


def test_torn_or_foreign_ends_of_documents_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    pack([[1, 2, 3], [4]], folder, row_tokens=4, vocabulary=9, packing="best_fit")
    file = folder / "documents.bin"
    whole = file.read_bytes()
    for wrong, said in (
        (whole[:-3], "has 13 bytes"),
        (np.array([4, 3]).tobytes(), "not in order"),
        (np.array([3, 9]).tobytes(), "not in order"),
        (np.array([2, 3]).tobytes(), "does not belong to the tokens"),
    ):
        file.write_bytes(wrong)
        with pytest.raises(BrdError, match=f"documents.bin: .*{said}.*run `brd compose` again"):
            TokenRows(folder)
    file.unlink()
    with pytest.raises(BrdError, match="no readable token file"):
        TokenRows(folder)


def test_files_of_an_earlier_version_are_full_rows_without_ends(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    meta = pack([[1, 2, 3]], folder, row_tokens=2, vocabulary=9)
    (folder / "documents.bin").unlink()
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace(f'"documents": {meta["documents"]}', '"x": 0'))
    rows = TokenRows(folder)
    assert rows.filled.tolist() == [2, 2]
    with pytest.raises(BrdError, match="delete this folder and run `brd compose` again"):
        rows.ends(0)
