import gzip
import json
import lzma
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from brd.errors import BrdError
from brd.sections.text import Text
from brd.text.sources import fingerprint, paragraphs

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXT = "Ærø is an island.\nIt has a ferry.\n\nA second document.\n"


def read(source: Path | str | Sequence[Path | str], **settings: Any) -> list[tuple[str, int, str]]:
    text = Text(source=str(source) if isinstance(source, Path | str) else [str(s) for s in source], **settings)
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.xz", lzma.compress(b"One.\n") + b"\0" + lzma.compress(b"Two.\n")[1:], "damaged"),
        ("a.txt.xz", lzma.compress(b"One.\n") + lzma.compress(b"Two.\n")[:-9], "ends too early"),
        ("a.txt.gz", gzip.compress(b"One.\n", mtime=0) + b"junk", "damaged"),
        ("a.txt.zst", COMPRESS[".zst"](b"One.\n") + b"junk", "damaged|ends too early"),
        ("a.txt.zst", COMPRESS[".zst"](b"One.\n") + COMPRESS[".zst"](b"Two.\n")[:-3], "ends too early"),
        ("a.txt.gz", b"", "ends too early"),
        ("a.txt.xz", b"", "ends too early"),
        ("a.txt.zst", b"", "ends too early"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "One."}\n', mtime=0)[:-9], "ends too early"),
    ],
)
def test_damage_behind_the_first_member_is_not_taken_for_the_end(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrdError, match=rf"{name}: ({message})"):
        read(tmp_path / name)


def test_what_xz_and_zstd_allow_between_members_and_in_headers(tmp_path: Path) -> None:
    padded = tmp_path / "a.txt.xz"
    padded.write_bytes(lzma.compress(b"One.\n") + b"\0" * 100_000 + lzma.compress(b"Two.\n") + b"\0" * 4)
    assert [text for *_, text in read(padded)] == ["One.", "Two."]
    # A skippable frame, then one frame of one raw block whose header asks for a window of 256 MiB (`--long=28`).
    long = tmp_path / "a.txt.zst"
    skippable = b"\x50\x2a\x4d\x18" + (2).to_bytes(4, "little") + b"ab"
    long.write_bytes(skippable + b"\x28\xb5\x2f\xfd\x00\x90" + (4 << 3 | 1).to_bytes(3, "little") + b"One.")
    assert [text for *_, text in read(long)] == ["One."]


def test_odd_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\u2028still one.\r\nTwo\x0cstill two.\r\n \t \r\nThree.".encode())
    assert [text for *_, text in read(path)] == ["One\u2028still one.", "Two\x0cstill two.", "Three."]
    assert [document for document, *_ in read(path)] == ["a.txt#0", "a.txt#0", "a.txt#1"]
    assert [text for *_, text in read(path, layout="blank_line")] == [
        "One\u2028still one.\nTwo\x0cstill two.",
        "Three.",
    ]
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": " One.\\r\\n\\r\\nTwo. "}\r\n')
    assert [text for *_, text in read(tmp_path / "b.jsonl", layout="blank_line")] == [" One.", "Two. "]


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
    for name in ("a.jsonl", "a.parquet"):
        for suffix in (".gz", ".xz", ".zst"):
            packed = tmp_path / f"{name}{suffix}"
            packed.write_bytes(COMPRESS[suffix]((tmp_path / name).read_bytes()))
            assert [text for *_, text in read(packed, field="body")] == ["One.", "Two.", "Three.", "Four."]


def test_folders_globs_and_lists_name_documents_without_the_machines_paths(tmp_path: Path) -> None:
    for name in ("b/one.txt", "a/two.txt", "a/skip.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name}.")
    assert [d for d, *_ in read(tmp_path)] == ["a/two.txt#0", "b/one.txt#0"]
    assert [d for d, *_ in read(tmp_path / "*" / "*.txt")] == ["a/two.txt#0", "b/one.txt#0"]
    both = read([str(tmp_path / "b"), "passages"])
    assert [d for d, *_ in both][:2] == ["one.txt#0", "passages/01-news-harbour-bridge.txt"]
    assert len({d for d, *_ in read("passages", layout="line")}) == 40


def test_each_file_is_read_once_and_no_two_documents_share_a_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "t").mkdir(parents=True)
        (tmp_path / folder / "t" / "x.txt").write_text(f"From {folder}.")
    first, second = tmp_path / "a/t/x.txt", tmp_path / "b/t/x.txt"
    assert read([first, second]) == [("x.txt#0", 0, "From a."), ("2:x.txt#0", 0, "From b.")]
    assert [d for d, *_ in read(tmp_path / "*" / "t" / "*.txt")] == ["a/t/x.txt#0", "b/t/x.txt#0"]
    assert read([tmp_path, first, tmp_path / "*/t/x.txt"]) == read(tmp_path)


def test_a_file_name_that_is_not_utf8_makes_a_document_id_that_is(tmp_path: Path) -> None:
    try:
        (tmp_path / "\udcff.txt").write_text("One.")
    except OSError:
        pytest.skip("the file system takes no such name")
    [(document, *_)] = read(tmp_path)
    assert document.encode() == rb"\xff.txt#0"
    assert fingerprint(Text(source=str(tmp_path)))


def test_a_missing_source_is_found_before_the_first_paragraph(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match=r"gone.txt: no such file or folder"):
        next(paragraphs(Text(source=["passages", str(tmp_path / "gone.txt")])))


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
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}\n", r"a.jsonl:1: not valid JSON"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a.jsonl:2: not UTF-8 text"),
        ("a.jsonl", rb'{"text": "\ud83d"}', r"a.jsonl:1: field 'text' has half a surrogate pair"),
        ("a.parquet.gz", gzip.compress(b"PAR1 nonsense", mtime=0), r"a.parquet.gz: not a Parquet file"),
        ("a.parquet.xz", b"nonsense", r"a.parquet.xz: damaged"),
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
    with pytest.raises(BrdError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_replaced_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rb'{"text": "\ud83d, \ud83d\ude00 \u00e9"}')
    assert read(tmp_path / "a.jsonl", encoding_errors="replace") == [("a.jsonl#0", 0, "\ufffd, 😀 é")]


def test_wrong_rows_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for column in (pa.array(["x", None]), pa.array([b"x", b"y"]), pa.array([1, 2])):
        pq.write_table(pa.table({"text": column}), path)
        with pytest.raises(BrdError, match=r"a.parquet: row [01]: column 'text' is not text"):
            read(path)

    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 2, 2, 5))
    pq.write_table(
        pa.table(
            {"text": pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(b"ok\xffOK")])}
        ),
        path,
    )
    with pytest.raises(BrdError, match=r"a.parquet: row 2: not UTF-8 text; .*text.encoding_errors: replace"):
        read(path)
    assert [text for *_, text in read(path, encoding_errors="replace")] == ["ok", "\ufffdOK"]

    pq.write_table(pa.table({"text": ["x" * 100] * 50}), path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    with pytest.raises(BrdError, match=r"a.parquet: not a Parquet file, or damaged") as caught:
        read(path)
    assert "\n" not in str(caught.value)


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
    asked: list[tuple[Any, Any]] = []

    def load_dataset(*places: Any, **names: Any) -> Any:
        asked.append((places, names))
        return made

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = read("hub:some/name", subset="en", split="test", revision="v1")
    assert asked == [(("some/name", "en"), {"split": "test", "revision": "v1", "streaming": True})]
    assert found == [
        ("some/name#0", 0, "One."),
        ("some/name#0", 1, "Two."),
        ("some/name#1", 0, "Three."),
    ]


def test_what_goes_wrong_in_a_hub_stream_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        yield {"text": "One."}
        raise ConnectionError("reset\nby the peer")

    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: broken())
    stream = paragraphs(Text(source="hub:some/name"))
    assert next(stream).text == "One."
    with pytest.raises(BrdError, match=r"hub:some/name: the dataset could not be loaded \(reset\)$"):
        next(stream)
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: [{"body": "x"}])
    with pytest.raises(BrdError, match=r"record 0 has no text in field 'text' \(there are body\); text.field"):
        read("hub:some/name")


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.")
    before = fingerprint(Text(source=str(path)))
    assert fingerprint(Text(source=str(path))) == before
    path.write_text("Two.")
    assert fingerprint(Text(source=str(path))) != before
    assert fingerprint(Text(source="passages")) == fingerprint(Text(source="passages"))


def test_the_fingerprint_follows_names_but_no_machines_paths(tmp_path: Path) -> None:
    prints = []
    for name in ("here/a.txt", "there/a.txt", "there2/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("One.")
        prints.append(fingerprint(Text(source=str((tmp_path / name).parent))))
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_of_a_large_file_follows_size_time_and_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brd.text.lines.WHOLE", 3 * 2**20)
    path = tmp_path / "a.txt"
    size = 4 * 2**20

    def printed(content: bytes, seconds: int = 1) -> str:
        path.write_bytes(content)
        os.utime(path, (seconds, seconds))
        return fingerprint(Text(source=str(path)))

    whole = b"x" * size
    prints = [
        printed(whole),
        printed(b"y" + whole[1:]),
        printed(whole[1:] + b"y"),
        printed(whole + b"x"),
        printed(whole, seconds=2),
    ]
    assert len(set(prints)) == len(prints)
    assert printed(whole) == prints[0]


def test_the_fingerprint_of_a_hub_dataset_follows_what_names_it() -> None:
    changes: list[dict[str, Any]] = [{}, {"subset": "en"}, {"split": "test"}, {"revision": "v1"}, {"source": "hub:b"}]
    assert len({fingerprint(Text(**{"source": "hub:a", **change})) for change in changes}) == len(changes)


def test_the_fingerprint_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match=r"gone.txt: no such file"):
        fingerprint(Text(source=str(tmp_path / "gone.txt")))


def test_a_shuffled_corpus_has_the_same_paragraphs_in_an_order_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = "\n\n".join(f"First of {name}{n}.\nSecond of {name}{n}." for n in range(20))
        (tmp_path / f"{name}.txt").write_text(lines, encoding="utf-8")
    plain = read([tmp_path / "a.txt", tmp_path / "b.txt"])
    shuffled = read([tmp_path / "a.txt", tmp_path / "b.txt"], order="shuffled")
    assert shuffled != plain
    assert sorted(shuffled) == sorted(plain)
    # The order does not hang on that of the sources, and the beginning has something of both.
    assert read([tmp_path / "b.txt", tmp_path / "a.txt"], order="shuffled") == shuffled
    assert {document[0] for document, *_ in shuffled[:20]} == {"a", "b"}
