"""What a plan says of a corpus that it does not go through, against what there is."""

import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from brd.errors import BrdError
from brd.plan import corpus as planned
from brd.plan.corpus import Candidate, Corpus, look, mean_length, pick
from brd.plan.pieces import cut
from brd.reading.chosen import ReadParagraph
from brd.recipe import Recipe
from brd.sections.text import Text
from brd.text.sentences import Span

WORDS = "river harbour Lina opened the shop in Trieste and winter came by train to Oslo".split()
EVERYTHING = 10**9


def paragraphs(count: int) -> list[str]:
    """Of one to five sentences; those of the second half are longer."""
    drawn = random.Random(0)

    def sentence(number: int) -> str:
        length = drawn.randint(4, 10) * (1 + (number > count // 2))
        return f"{drawn.choice(WORDS).capitalize()} {number} " + " ".join(drawn.choices(WORDS, k=length)) + "."

    return [" ".join(sentence(n) for _ in range(drawn.randint(1, 5))) for n in range(count)]


def as_lines(texts: list[str]) -> str:
    return "".join(text + ("\n\n" if number % 7 == 0 else "\n") for number, text in enumerate(texts))


def as_records(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(texts))


def write(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / name
    if ".parquet" in name:
        pq.write_table(pa.table({"text": texts}), path, row_group_size=300)
        content = path.read_bytes()
    else:
        content = (as_lines(texts) if ".txt" in name else as_records(texts)).encode()
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path


def recipe(source: str | list[str], text: dict[str, Any] | None = None, **reading: Any) -> Recipe:
    wanted = {"sentences": EVERYTHING, "held_out_sentences": EVERYTHING, **reading}
    text = {"source": source, "layout": "line", "min_characters": 1, "held_out": 0.2, **(text or {})}
    return Recipe.model_validate({"name": "x", "text": text, "reading": wanted})


def looked(of: Recipe) -> Corpus:
    return look(of, lambda _: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora of this test are large ones."""
    for name, value in {"EXACT": 20_000, "PIECES": 32, "PIECE": 2000}.items():
        monkeypatch.setattr(planned, name, value)


def compared(of: Recipe, monkeypatch: pytest.MonkeyPatch) -> tuple[Corpus, Corpus]:
    found = looked(of)
    monkeypatch.setattr(planned, "EXACT", 10**9)
    there = looked(of)
    assert (found.exact, there.exact) == (False, True)
    return found, there


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.parquet", "a.txt.gz", "a.jsonl.zst", "a.txt.xz", "a.parquet.gz"]
)
def test_a_large_corpus_is_estimated_from_pieces(
    name: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, there = compared(recipe(str(write(tmp_path, name, paragraphs(3000)))), monkeypatch)
    total = sum(there.sentences.values())
    # Of a compressed file only the beginning can be read, whose sentences are shorter here.
    close = 0.1 if name.count(".") == 1 else 0.6
    assert sum(found.sentences.values()) == pytest.approx(total, rel=close)
    assert found.distinct == pytest.approx(there.distinct, rel=close)
    assert found.characters == pytest.approx(there.characters, rel=0.15)
    if name.count(".") == 1:
        assert mean_length(found.pool) == pytest.approx(mean_length(there.pool), rel=0.05)
        assert abs(sum(found.sentences.values()) / total - 1) < 3 * found.error
    assert sum(c.weight for c in found.pool) == pytest.approx(found.distinct)


def test_many_files_and_documents_that_are_whole_files(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = paragraphs(3000)
    for number in range(60):
        part = texts[number * 50 : (number + 1) * 50]
        (tmp_path / f"{number}.txt").write_text("\n\n".join(part), encoding="utf-8")
    found, there = compared(recipe(str(tmp_path), {"layout": "blank_line"}), monkeypatch)
    for part, count in there.sentences.items():
        assert found.sentences[part] == pytest.approx(count, rel=0.4 if part == "held_out" else 0.15)


def test_the_beginning_of_a_large_corpus_is_counted(small: None, tmp_path: Path) -> None:
    path = str(write(tmp_path, "a.txt", paragraphs(3000)))
    found = looked(recipe(path, sentences=60, held_out_sentences=10))
    assert found.exact
    assert len(found.seen) == len({c.text for c in found.seen}) == found.distinct
    assert 60 <= found.sentences["train"] < 65
    # Of a shuffled one the run takes some of everything, and more of it is not counted than is wanted.
    found = looked(recipe(path, {"order": "shuffled"}, sentences=60, held_out_sentences=10))
    assert not found.exact
    assert found.sentences == pytest.approx({"train": 60, "held_out": 10})
    assert found.error == 0


def test_a_run_that_takes_the_first_half_is_estimated_from_it(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write(tmp_path, "a.txt", paragraphs(3000)))
    found, there = compared(recipe(path, sentences=2500, held_out_sentences=500), monkeypatch)
    assert found.sentences == pytest.approx({"train": 2500, "held_out": 500})
    assert mean_length(found.pool) == pytest.approx(mean_length(there.pool), rel=0.08)


def test_what_is_wrong_in_a_piece_names_the_file(small: None, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(as_records(paragraphs(1000)) + "no JSON\n" * 2000, encoding="utf-8")
    with pytest.raises(BrdError, match=r"a\.jsonl: .*part that begins at byte \d+, line \d+: not valid JSON"):
        looked(recipe(str(path)))
    with pytest.raises(BrdError, match=r"has no column 'body' \(there are text\)"):
        looked(recipe(str(write(tmp_path, "a.parquet", paragraphs(3000))), {"field": "body"}))


def test_a_corpus_without_a_held_out_document_is_told(small: None, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("\n\n".join(paragraphs(2000)), encoding="utf-8")
    with pytest.raises(BrdError, match=r"no document fell into the held-out part|no sentence to read"):
        looked(recipe(str(tmp_path), {"layout": "blank_line"}))


@settings(deadline=None)
@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30), max_size=60),
    pieces=st.integers(1, 9),
    size=st.integers(1, 200),
)
def test_pieces_are_whole_lines_of_the_corpus(
    lines: list[str], pieces: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    path = folder / "a.txt"
    path.write_bytes("\n".join(lines).encode())
    (folder / "out").mkdir()
    found = cut(Text(source=str(path)), folder / "out", pieces, size)
    content, before = path.read_bytes(), 0
    for number, piece in enumerate(found):
        held = (folder / "out" / f"{number:05d}.txt").read_bytes()
        assert content[piece.offset : piece.offset + piece.size] == held
        # Whole lines, in order, none of them twice.
        assert piece.offset == 0 or content[piece.offset - 1 : piece.offset] == b"\n"
        assert held.endswith(b"\n") or piece.offset + piece.size == len(content)
        assert piece.offset >= before
        before = piece.offset + piece.size
    assert sum(p.weight or 0.0 for p in found) == pytest.approx(len(content) if found else 0)


def a_candidate(text: str, weight: float = 1.0) -> Candidate:
    return Candidate(ReadParagraph("d", 0, text, False, (Span(0, len(text)),), (0,)), 0, weight)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=200), most=st.integers(1, 50))
def test_the_sample_has_every_length_and_does_not_depend_on_order(lengths: list[int], most: int) -> None:
    pool = [a_candidate(f"{n:03d} {'x' * length}") for n, length in enumerate(lengths)]
    drawn = pick(pool, most)
    assert len(drawn) == len({c.text for c in drawn}) == min(most, len(pool))
    assert drawn == pick(pool[::-1], most)
    assert len(drawn[0].text) == max(len(c.text) for c in drawn)
    # One of each class: no two classes may be skipped between neighbours.
    by_length = sorted(len(c.text) for c in pool)
    places = sorted(len(c.text) for c in drawn)
    width = -(-len(pool) // len(drawn))
    for number, length in enumerate(places):
        assert by_length[max(0, number * len(pool) // len(drawn) - width)] <= length
        assert length <= by_length[min(len(pool) - 1, (number + 1) * len(pool) // len(drawn) + width)]


def test_a_dataset_of_the_hub_is_counted_where_little_of_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"text": text} for text in paragraphs(400)]
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: iter(records))
    found = looked(recipe("hub:some/name", sentences=100, held_out_sentences=10))
    assert found.exact
    assert 100 <= found.sentences["train"] < 105
    found = looked(recipe("hub:some/name"))
    assert not found.exact
    assert "not known, and taken to be enough" in found.how
    assert found.sentences == {"train": EVERYTHING, "held_out": EVERYTHING}


def test_languages_are_counted_apart(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = paragraphs(900)
    for number, name in enumerate(("de-1.txt", "en-1.txt", "fr-1.txt")):
        write(tmp_path, name, texts[300 * number : 300 * (number + 1)])
    patterns = {"language_of": {"de-*": "de", "fr-*": "fr"}}
    of = recipe(str(tmp_path), patterns, languages=["en", "de"])
    about, there = compared(of, monkeypatch)
    assert not about.exact
    assert there.exact
    assert set(about.languages) == set(there.languages) == {"en", "de"}
    assert sum(there.languages.values()) == there.distinct
    for code, count in there.languages.items():
        assert about.languages[code] == pytest.approx(count, rel=0.3)
    assert {c.paragraph.language for c in about.pool} == {"en", "de"}


def test_records_say_their_language_in_pieces_of_parquet_too(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = paragraphs(900)
    said = ["de" if number % 3 else None for number in range(len(texts))]
    pq.write_table(pa.table({"text": texts, "lang": said}), tmp_path / "a.parquet", row_group_size=300)
    of = recipe(str(tmp_path / "a.parquet"), {"language_field": "lang"}, languages=["en", "de"])
    about, there = compared(of, monkeypatch)
    assert not about.exact
    for code, count in there.languages.items():
        assert about.languages[code] == pytest.approx(count, rel=0.3)
