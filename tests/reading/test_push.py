"""A dataset of readings: its folder, its card, and its upload to a stand-in for the Hub."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from read_runs import Brd, everything, failed, ok, read_into, recipe_in

from brd.reading.behavior import load_behaviors, prompt_hash
from brd.reading.card import FIELDS, public
from brd.reading.known import Known
from brd.reading.store import SCHEMA
from hub_server import TOKEN, Hub, running

LICENCE = ("--licence", "cc0-1.0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushing")
    return read_into(folder / "run", recipe_in(folder))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(monkeypatch) as server:
        yield server


def test_a_dry_run_writes_a_folder_that_loads(run: Path, brd_here: Brd, tmp_path: Path) -> None:
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    note = "Sentences of our own | CC0.\nNobody else's."
    said = ok(brd_here("push", run, "me/readings", *LICENCE, "--note", note, "--dry-run", "--out", "data-set"))
    folder = tmp_path / "data-set"
    assert "nothing was uploaded" in said
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "README.md", "data/test.parquet", "data/train.parquet",
    ]  # fmt: skip
    data = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for split, held_out in (("train", False), ("test", True)):
        wanted = [
            (p.document, p.index, n, p.spans[n].start, r.key, r.text, r.raw, r.content, r.verdict)
            for p, n, r in everything(run, held_out)
        ]
        names = ("document", "paragraph", "sentence", "start", "key", "text", "raw", "content", "verdict")
        assert list(zip(*(data[split][name] for name in names), strict=True)) == wanted
    # The files are what another run takes as reading.known.
    answers = Known(sorted(folder.glob("data/*.parquet"))).answers([r.key for *_, r in everything(run)])
    assert {key: answer.text for key, answer in answers.items()} == {r.key: r.raw for *_, r in everything(run)}

    text = (folder / "README.md").read_text(encoding="utf-8")
    card = DatasetCard(text)
    header = card.data.to_dict()
    assert header["license"] == "cc0-1.0"
    assert header["language"] == ["en"]
    assert header["size_categories"] == ["n<1K"]
    assert set(header["task_categories"]) == {"question-answering", "token-classification"}
    assert [file["split"] for file in header["configs"][0]["data_files"]] == ["train", "test"]
    train = [r for *_, r in everything(run, False) if r.behavior == "ner"]
    verified = sum(r.verdict == "verified" for r in train)
    assert f"| train | ner | {len(train)} | {verified} ({100 * verified / len(train):.1f} %) |" in card.text
    assert "Sentences of our own | CC0. Nobody else's." in card.text
    for name, behavior in load_behaviors(["ner", "qra"]).items():
        assert f"{name}: prompt <code>{prompt_hash(behavior)}</code>" in card.text
        assert behavior.prefix in card.text
    for wanted in (train[0].teacher, "scripted.gguf", "decoding: `greedy`", "corpus.jsonl", "brd push", "## Limits"):
        assert wanted in card.text
    # Where things lay on the machine that read is nobody's business.
    assert "/home/somebody" not in text
    assert str(run.parent) not in text


def test_the_card_names_every_column() -> None:
    assert list(FIELDS) == [*SCHEMA.names, "language"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("embedded:smollm2", "embedded:smollm2"),
        ("owner/model", "owner/model"),
        ("/home/me/models/a.gguf", "a.gguf"),
        ("./models/a", "a"),
        ("https://me:pw@host/v1", "https://host/v1"),
    ],
)
def test_names_without_their_machine(name: str, shown: str) -> None:
    assert public(name) == shown


def test_a_part_of_the_readings(run: Path, brd_here: Brd) -> None:
    options = ("--behaviors", "qra", "--part", "train", "--verified", "--dry-run", "--out", "qra")
    ok(brd_here("push", run, "me/qra", *LICENCE, *options))
    folder = Path("qra")
    (file,) = folder.glob("data/*")
    table = pq.read_table(file)
    assert set(table["behavior"].to_pylist()) == {"qra"}
    assert set(table["verdict"].to_pylist()) == {"verified"}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "data/test.parquet" not in text
    assert "--behaviors qra --part train --verified" in text


def test_an_upload(run: Path, brd_here: Brd, hub: Hub) -> None:
    done = brd_here("push", run, "me/x", *LICENCE, "--private")
    assert f"{hub.address}/datasets/me/x" in ok(done)
    folder = run / "export"
    on_disk = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.files == on_disk
    assert hub.card.encode() == on_disk["README.md"]
    assert set(on_disk) == {"README.md", "data/train.parquet", "data/test.parquet"}
    assert hub.created["type"] == "dataset"
    assert hub.created["visibility"] == "private"
    # The token goes to the Hub and nowhere else.
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN.encode() not in b"".join(on_disk.values())

    hub.files.clear()
    ok(brd_here("push", run, "me/x", *LICENCE))
    assert hub.files == on_disk
    hub.refuse = (403, f"{TOKEN} is not welcome")
    refused = brd_here("push", run, "me/x", *LICENCE)
    failed(refused, "me/x: the Hub refused (403", "is ready, try again")
    hub.refuse = (400, f"license must be one of many, {TOKEN}")
    failed(bad := brd_here("push", run, "me/x", *LICENCE), "license must be one of many")
    for output in (done, refused, bad):
        assert TOKEN not in output.stdout + output.stderr


def test_an_edited_card_is_not_lost(run: Path, brd_here: Brd) -> None:
    push = ("push", run, "me/x", *LICENCE, "--dry-run", "--out", "set")
    ok(brd_here(*push))
    ok(brd_here(*push))
    card = Path("set/README.md")
    card.write_text("My own words.")
    failed(brd_here(*push), "README.md", "--force", "hf upload")
    assert card.read_text() == "My own words."
    ok(brd_here(*push, "--force"))
    Path("set/notes.txt").write_text("precious")
    failed(brd_here(*push, "--force"), "notes.txt", "other files")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "me/x"], ["--licence"]),
        (["{run}", "me/x", "--licence", "CC BY-SA 4.0"], ["--licence CC BY-SA 4.0", "cc-by-sa-4.0"]),
        (["{run}", "x", *LICENCE], ["x: a repository is OWNER/NAME"]),
        (["{run}", "me/x y", *LICENCE], ["me/x y", "OWNER/NAME"]),
        (["nowhere", "me/x", *LICENCE], ["nowhere", "no such folder"]),
        (["{run}", "me/x", *LICENCE, "--behaviors", "nar"], ["--behaviors nar", "'ner'"]),
        (["{run}", "me/x", *LICENCE], ["not logged in", "HF_TOKEN", "--dry-run"]),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_sent(
    run: Path,
    brd_here: Brd,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    out = ("--out", "set")
    failed(brd_here("push", *(a.format(run=run) for a in arguments), *out), *words)
    assert not (tmp_path / "set").exists()
    assert hub.tokens == set()


def test_offline_is_said_before_anything_is_written(run: Path, brd_here: Brd, tmp_path: Path, hub: Hub) -> None:
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    failed(brd_here("push", run, "me/x", *LICENCE, "--out", "set"), "HF_HUB_OFFLINE", "--dry-run")
    assert not (tmp_path / "set").exists()
