"""The layouts of CC-100 and FineWeb as they are published, in small files of our own; ids that records bring."""

import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brd.errors import BrdError
from brd.sections.text import Text
from brd.text.sources import fingerprint, paragraphs, unpinned

FINEWEB = [
    {
        "text": "The ferry was late.\nNobody on the quay minded, for the sun was out.",
        "id": "<urn:uuid:3d9a2f0e-0000-4000-8000-000000000001>",
        "dump": "CC-MAIN-2024-10",
        "url": "https://ferry.example/late",
        "date": "2024-02-21T10:11:12Z",
        "file_path": "s3://crawl/segments/1/warc/1.warc.gz",
        "language": "en",
        "language_score": 0.97,
        "token_count": 18,
    },
    {
        "text": "A kettle sings.",
        "id": "<urn:uuid:3d9a2f0e-0000-4000-8000-000000000002>",
        "dump": "CC-MAIN-2024-10",
        "url": "https://kettle.example/",
        "date": "2024-02-21T10:11:13Z",
        "file_path": "s3://crawl/segments/1/warc/1.warc.gz",
        "language": "en",
        "language_score": 0.91,
        "token_count": 5,
    },
]
IDS = [record["id"] for record in FINEWEB]


def read(source: Path | str, **settings: Any) -> list[tuple[str, int, str]]:
    return [(p.document, p.index, p.text) for p in paragraphs(Text(source=str(source), **settings))]


def fineweb(folder: Path) -> Path:
    """``sample/10BT/000_00000.parquet``, as the repository of the dataset has it."""
    path = folder / "sample" / "10BT" / "000_00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(FINEWEB), path)
    return path


def test_cc100_a_paragraph_a_line_a_blank_line_between_documents(tmp_path: Path) -> None:
    (tmp_path / "en.txt.xz").write_bytes(
        lzma.compress(b"The ferry was late.\nNobody minded.\n\nA kettle sings.\n\n\nThe end.\n")
    )
    assert read(tmp_path / "en.txt.xz", layout="line") == [
        ("en.txt.xz#0", 0, "The ferry was late."),
        ("en.txt.xz#0", 1, "Nobody minded."),
        ("en.txt.xz#1", 0, "A kettle sings."),
        ("en.txt.xz#2", 0, "The end."),
    ]


def test_fineweb_a_record_is_a_document_and_a_line_a_paragraph(tmp_path: Path) -> None:
    fineweb(tmp_path)
    lines = ["The ferry was late.", "Nobody on the quay minded, for the sun was out.", "A kettle sings."]
    assert [text for *_, text in read(tmp_path)] == lines
    assert read(tmp_path)[0][0] == "sample/10BT/000_00000.parquet#0"
    assert [(d, i) for d, i, _ in read(tmp_path, id_field="id")] == [(IDS[0], 0), (IDS[0], 1), (IDS[1], 0)]
    # With ids the documents are the same however they are cut into files.
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, FINEWEB)))
    assert read(tmp_path / "one.jsonl", id_field="id") == read(tmp_path / "sample", id_field="id")


def test_fineweb_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*places: Any, **names: Any) -> Any:
        asked.append((places, names))
        return FINEWEB

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    keys = {"subset": "sample-10BT", "revision": "0123abc"}
    found = read("hub:HuggingFaceFW/fineweb", id_field="id", **keys)
    names = {"split": "train", "revision": keys["revision"], "streaming": True}
    assert asked == [(("HuggingFaceFW/fineweb", "sample-10BT"), names)]
    assert [d for d, *_ in found] == [IDS[0], IDS[0], IDS[1]]
    assert unpinned(Text(source=["passages", "hub:a/b"])) == ["hub:a/b"]
    assert unpinned(Text(source="hub:a/b", revision="v1")) == unpinned(Text()) == []


def test_ids_may_be_numbers_and_the_same_field_as_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One.", "n": 7}\n{"text": "Two.", "n": -1}\n')
    assert [d for d, *_ in read(tmp_path / "a.jsonl", id_field="n")] == ["7", "-1"]
    pq.write_table(pa.table({"text": ["One.", "Two."]}), tmp_path / "a.parquet")
    assert [d for d, *_ in read(tmp_path / "a.parquet", id_field="text")] == ["One.", "Two."]
    # Text files have no records; their ids are as ever.
    (tmp_path / "a.txt").write_text("One.")
    assert [d for d, *_ in read(tmp_path / "a.txt", id_field="n")] == ["a.txt#0"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], r"field 'id' is 'x' as in the record before; text.id_f"),
        ([{"text": "a", "id": ""}], r"field 'id' is no id: text or a whole number"),
        ([{"text": "a", "id": None}], r"field 'id' is no id"),
        ([{"text": "a", "id": 1.5}], r"field 'id' is no id"),
        ([{"text": "a", "id": True}], r"field 'id' is no id"),
        ([{"text": "a", "key": "x"}], r"'id' \(there are .*key'?\); text.id_field|'id' is missing .*text.id_field"),
    ],
)
def test_wrong_ids_name_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: records)
    for source, where in (
        (tmp_path / "a.jsonl", rf"a.jsonl:{len(records)}: "),
        (tmp_path / "a.parquet", rf"a.parquet: (row {len(records) - 1}: |has no column )"),
        ("hub:a/b", rf"hub:a/b: record {len(records) - 1}(: | has no field )"),
    ):
        with pytest.raises(BrdError, match=f"{where}.*({message})"):
            read(source, id_field="id")


def test_ids_that_are_no_text_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rb'{"text": "One.", "id": "\ud83d"}')
    with pytest.raises(BrdError, match=r"a.jsonl:1: field 'id' has half a surrogate pair"):
        read(tmp_path / "a.jsonl", id_field="id")
    assert read(tmp_path / "a.jsonl", id_field="id", encoding_errors="replace") == [("\ufffd", 0, "One.")]


def test_ids_change_no_content_print(tmp_path: Path) -> None:
    path = str(fineweb(tmp_path))
    assert fingerprint(Text(source=path)) == fingerprint(Text(source=path, id_field="id"))
