import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from brd.errors import BrdError
from brd.recipe import Text
from brd.text.sources import fingerprint, paragraphs

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXT = "Ærø is an island.\nIt has a ferry.\n\nA second document.\n"


def read(source: Path | str | list[str], **settings: Any) -> list[tuple[str, int, str]]:
    text = Text(source=[str(s) for s in source] if isinstance(source, list) else str(source), **settings)
    return [(p.document, p.index, p.text) for p in paragraphs(text)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_cc100_layout(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"en.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](TEXT.encode()))
    name = path.name
    assert read(path) == [
        (f"{name}#0", 0, "Ærø is an island."),
        (f"{name}#0", 1, "It has a ferry."),
        (f"{name}#1", 0, "A second document."),
    ]
    assert read(path, layout="blank_line") == [
        (name, 0, "Ærø is an island.\nIt has a ferry."),
        (name, 1, "A second document."),
    ]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_concatenated_members_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"en.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"One.\n") + COMPRESS[suffix](b"Two.\n"))
    assert [text for *_, text in read(path)] == ["One.", "Two."]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    import random

    whole = COMPRESS[suffix](random.Random(0).randbytes(20_000).hex().encode())
    path = tmp_path / f"en.txt{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrdError, match=rf"en.txt{suffix}: ends too early; the file is truncated"):
        read(path)
    path.write_bytes(b"this is not compressed")
    with pytest.raises(BrdError, match=rf"en.txt{suffix}: "):
        read(path)


def test_odd_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\u2028still one.\r\nTwo\x0cstill two.\r\n \t \r\nThree.".encode())
    assert [text for *_, text in read(path)] == ["One\u2028still one.", "Two\x0cstill two.", "Three."]
    assert [document for document, *_ in read(path)] == ["a.txt#0", "a.txt#0", "a.txt#1"]


def test_lines_that_cross_the_pieces_of_a_file(tmp_path: Path) -> None:
    lines = ["é" * 700_001, "x" * 1_048_575, "end"]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    assert [text for *_, text in read(tmp_path / "a.txt")] == lines


def test_records(tmp_path: Path) -> None:
    records = [{"body": "One.\nTwo."}, {"body": "Three.\n\nFour."}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    pq.write_table(pa.table({"body": [r["body"] for r in records]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name, field="body") == [
            (f"{name}#0", 0, "One."),
            (f"{name}#0", 1, "Two."),
            (f"{name}#1", 0, "Three."),
            (f"{name}#1", 1, "Four."),
        ]
    assert read(tmp_path / "a.jsonl", field="body", layout="blank_line")[0] == ("a.jsonl#0", 0, "One.\nTwo.")
    packed = tmp_path / "b.parquet.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert len(read(packed, field="body")) == 4


def test_folders_globs_and_lists_name_documents_without_the_machines_paths(tmp_path: Path) -> None:
    for name in ("b/one.txt", "a/two.txt", "a/skip.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name}.")
    assert [d for d, *_ in read(tmp_path)] == ["a/two.txt#0", "b/one.txt#0"]
    assert [d for d, *_ in read(tmp_path / "*" / "*.txt")] == ["a/two.txt#0", "b/one.txt#0"]
    both = read([str(tmp_path / "b"), "passages"])
    assert [d for d, *_ in both][:2] == ["one.txt#0", "passages/01-news-harbour-bridge.txt"]


def test_reading_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"Good line.\n" * 200_000 + b"\xff bad\n")
    stream = paragraphs(Text(source=str(path)))
    assert next(stream).text == "Good line."
    with pytest.raises(BrdError, match=r"a.txt:200001: not UTF-8 text \(byte 1 of the line\)"):
        list(stream)
    assert read(path, encoding_errors="replace")[-1][2] == "\ufffd bad"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a.jsonl:2: should be a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', r"a.jsonl:1: field 'text' is missing \(there are 'body'\); text.field"),
        ("a.jsonl", b'{"text": 3}\n', r"a.jsonl:1: field 'text' is not text"),
        ("a.parquet", b"PAR1 nonsense", r"a.parquet: not a Parquet file"),
        ("a.pdf", b"x", r"a.pdf: cannot be read by its name \(known: .txt, .jsonl, .parquet"),
        ("a.txt", b"\n \n", r"text.source: the corpus is empty"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrdError, match=message):
        read(tmp_path / name)


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match=r"gone.txt: no such file or folder"):
        read(tmp_path / "gone.txt")
    with pytest.raises(BrdError, match=r"no file matches"):
        read(tmp_path / "*.txt")
    with pytest.raises(BrdError, match=r"no file that can be read"):
        read(tmp_path)
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(BrdError, match=r"no column 'text' \(there are body\)"):
        read(tmp_path / "a.parquet")


def test_a_hub_dataset_that_cannot_be_loaded_is_one_line() -> None:
    with pytest.raises(BrdError, match=r"hub:nobody/nothing: the dataset could not be loaded") as caught:
        read("hub:nobody/nothing")
    assert "\n" not in str(caught.value)


def test_hub_records_are_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import IterableDataset

    made = IterableDataset.from_generator(lambda: iter([{"text": "One.\nTwo."}, {"text": "Three."}]))
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: made)
    assert read("hub:some/name") == [
        ("some/name#0", 0, "One."),
        ("some/name#0", 1, "Two."),
        ("some/name#1", 0, "Three."),
    ]


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.")
    before = fingerprint(Text(source=str(path)))
    assert fingerprint(Text(source=str(path))) == before
    path.write_text("Two.")
    assert fingerprint(Text(source=str(path))) != before
    assert fingerprint(Text(source="passages")) == fingerprint(Text(source="passages"))
