"""Students of a run: cut by measuring, with adapters, their cards, and what hands them on."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from brd import recipe as recipes
from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.run import RunFolder, read_json
from brd.training.origin import check_start
from brd.training.student import load_model
from hub_server import TOKEN, Hub, running

Brd = Callable[..., Any]


def ok(done: Any) -> str:
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def failed(done: Any, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("brd: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def open_run(path: Path) -> Pipeline:
    loaded = recipes.load(str(path / "recipe.yaml"))
    return Pipeline(loaded, RunFolder(path, loaded), Console())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """A run to the end of evaluation, and the cards as they were before it."""
    folder = tmp_path_factory.mktemp("students")
    tree = {
        "name": "small",
        "text": {"source": "passages", "layout": "blank_line", "held_out": 0.3, "healing": 0.2},
        "reading": {"sentences": 12, "held_out_sentences": 6},
        "teacher": {"model": str(tiny_model), "max_new_tokens": 12, "dtype": "float32"},
        "composing": {"row_tokens": 64},
        "student": {"model": str(tiny_model), "keep_layers": 3, "lora": {"rank": 2}},
        "healing": {"learning_rate": 1e-2, "most_tokens": 512, "check_tokens": 256, "cooling_tokens": 128},
        "training": {"rows_per_step": 2, "micro_rows": 2, "dtype": "float32", "learning_rate": 1e-2},
        "evaluation": {"tasks": ["sst2"], "limit": 4, "reading_sentences": 4, "dtype": "float32"},
        "arms": ["base", "brd", "brd+further"],
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    loaded = recipes.load(str(folder / "small.yaml"))
    pipeline = Pipeline(loaded, RunFolder(folder / "run", loaded), Console())
    pipeline.up_to("train")
    before = {arm: (pipeline.student(arm) / "README.md").read_text() for arm in loaded.arms}
    pipeline.evaluate()
    return {"path": folder / "run", "before": before}


@pytest.fixture
def run(whole: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the run that may be changed."""
    return Path(shutil.copytree(whole["path"], tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(monkeypatch) as server:
        yield server


def test_all_arms_begin_with_the_layers_that_were_measured(whole: dict[str, Any]) -> None:
    path = whole["path"]
    found = read_json(path / "steps" / "train.layers.json")["result"]
    assert len(found["influence"]) == 4
    assert found["kept"] == sorted(found["kept"])
    assert min(range(4), key=found["influence"].__getitem__) not in found["kept"]
    base, taught = (load_model(str(path / "students" / arm), torch.float32) for arm in ("base", "brd"))
    assert base.config.num_hidden_layers == taught.config.num_hidden_layers == 3
    assert not any((path / "students" / name / "adapter").exists() for name in ("base", "healed"))
    assert (path / "students" / "brd" / "adapter" / "adapter_model.safetensors").exists()
    ours, theirs = base.state_dict(), taught.state_dict()
    assert all(("proj" in key) != torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(open_run(path).state()[step] for step in ("compose.layers", "train.layers", "train.brd"))


def test_a_chains_adapter_goes_on_with_the_student_before_it(whole: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    students = whole["path"] / "students"
    for arm, start in (("brd", "base"), ("brd+further", "brd"), ("base", "healed")):
        ours, theirs = (load_model(str(students / name), torch.float32).state_dict() for name in (arm, start))
        file = students / arm / "adapter" / "adapter_model.safetensors"
        adapter = load_file(file) if arm != "base" else {}
        for name, tensor in theirs.items():
            below, above = (f"base_model.model.{name.removesuffix('.weight')}.lora_{m}.weight" for m in "AB")
            # Rank 2 and alpha 32: sixteen times the product.
            added = 16 * adapter[above] @ adapter[below] if above in adapter else torch.zeros(())
            torch.testing.assert_close(ours[name], tensor + added, rtol=1e-5, atol=1e-6, msg=f"{arm} {name}")
        assert len(adapter) == (0 if arm == "base" else 2 * 7 * 3)


def test_a_card_tells_what_a_student_is(whole: dict[str, Any], tiny_model: Path) -> None:
    from huggingface_hub import ModelCard

    path = whole["path"]
    cards = {arm: ModelCard.load(path / "students" / arm / "README.md") for arm in ("base", "brd")}
    header = cards["brd"].data.to_dict()
    assert header["library_name"] == "transformers"
    assert header["language"] == ["en"]
    assert "license" not in header
    figures = read_json(path / "evaluation" / "brd.json")
    (result,) = header["model-index"][0]["results"]
    assert header["model-index"][0]["name"] == "small-brd"
    assert result["metrics"][0]["value"] == figures["tasks"]["sst2"]["accuracy"]
    text = cards["brd"].text
    trained = read_json(path / "steps" / "train.brd.json")["result"]
    for words in (
        "`brd`, trained on original text and the teacher's readings",
        f"({trained['parameters']:,} parameters)",
        f"{trained['steps']} steps, {trained['trained_tokens']:,} tokens",
        "the 3 of 4 that change most",
        "**Before all arms:** trained on ",
        "rank 2",
        "| text | `passages` | `cc0-1.0` |",
        "| teacher | `tiny` | not stated |",
        f"| sst2 | review | 4 | {100 * figures['tasks']['sst2']['accuracy']:.1f} ",
        "keep_layers: 3",
    ):
        assert words in text, words
    assert "of which this model saw nothing" in cards["base"].text
    assert "adapter/" not in cards["base"].text
    for before in whole["before"].values():
        assert "Not evaluated." in before
        assert "model-index" not in before
    # Where things lay on this machine is nobody's business.
    for file in (path / "students").rglob("*.*"):
        if file.suffix in (".md", ".json"):
            assert str(tiny_model.parent) not in file.read_text(encoding="utf-8"), file


def test_a_card_follows_its_student_but_not_over_what_somebody_wrote(run: Path) -> None:
    pipeline = open_run(run)
    card = pipeline.student("brd") / "README.md"
    told = card.read_text()
    stamp = card.stat().st_mtime_ns
    pipeline.evaluate()
    assert card.stat().st_mtime_ns == stamp
    # Scores that are of another recipe's are not this one's.
    other = recipes.changed(pipeline.recipe, {"evaluation.limit": 3})
    Pipeline(other, RunFolder(run, other), Console()).train()
    assert "Not evaluated." in card.read_text()
    Pipeline(pipeline.recipe, RunFolder(run, pipeline.recipe), Console()).train()
    assert card.read_text() == told
    card.write_text("My own words.")
    pipeline.evaluate()
    assert card.read_text() == "My own words."
    # Trained anew the folder is another; the words stay beside it.
    longer = recipes.changed(pipeline.recipe, {"training.learning_rate": 1e-4})
    Pipeline(longer, RunFolder(run, longer), Console()).train()
    assert "# small: brd" in card.read_text()
    assert (run / "students" / "brd.README.md").read_text() == "My own words."


def test_a_student_is_uploaded_with_its_card(run: Path, brd_here: Brd, hub: Hub) -> None:
    folder = run / "students" / "brd"
    push = ("push", run, "me/x", "--student", "brd")
    failed(brd_here(*push), "licence of", "--licence", "licences.student")
    done = ok(brd_here(*push, "--licence", "apache-2.0", "--dry-run"))
    assert "nothing was uploaded" in done
    assert not hub.tokens
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    done = ok(brd_here(*push, "--private"))
    assert f"{hub.address}/me/x" in done
    on_disk = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.files == on_disk
    assert {"README.md", "model.safetensors", "tokenizer.json", "adapter/adapter_model.safetensors"} <= set(on_disk)
    assert hub.card.encode() == on_disk["README.md"]
    assert (hub.created["name"], hub.created["visibility"]) == ("x", "private")
    assert hub.created.get("type", "model") == "model"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    # What was said once holds when the card is written again.
    open_run(run).evaluate()
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.")
    failed(brd_here(*push, "--licence", "apache-2.0"), "README.md: was edited", "--force")
    assert "as it was edited" in ok(brd_here(*push))
    assert hub.files["README.md"] == b"---\nlicense: mit\n---\nMine."
    assert "its card" in ok(brd_here(*push, "--licence", "apache-2.0", "--force"))
    hub.refuse = (403, "no")
    failed(brd_here(*push), "me/x: the Hub refused (403")


def test_a_student_becomes_a_gguf_file(run: Path, brd_here: Brd, tmp_path: Path) -> None:
    from gguf import GGUFReader

    export = ("export", run, "--format", "gguf", "--student", "brd", "--out", "brd.gguf")
    done = ok(brd_here(*export))
    assert "brd.gguf: arm brd, " in done
    assert "parameters in 30 tensors, float32" in done
    assert GGUFReader(tmp_path / "brd.gguf").fields["general.name"].contents() == "small brd"
    failed(brd_here(*export), "brd.gguf: exists already", "--force")
    ok(brd_here(*export, "--force"))
    config = run / "students" / "brd" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "gelu"}))
    before = (tmp_path / "brd.gguf").read_bytes()
    failed(brd_here(*export, "--force"), "silu")
    assert (tmp_path / "brd.gguf").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brd.gguf", "run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "{run}", "--format", "gguf", "--out", "a"], ["--student brd"]),
        (["export", "{run}", "--format", "gguf", "--student", "bdr", "--out", "a"], ["--student bdr", "'brd'"]),
        (["export", "{run}", "--format", "jsonl", "--student", "brd", "--out", "a"], ["--format gguf"]),
        (["export", "{run}", "--format", "gguf", "--student", "brd", "--part", "all", "--out", "a"], ["--part"]),
        (["export", "nowhere", "--format", "gguf", "--student", "brd", "--out", "a"], ["nowhere", "no such folder"]),
        (["push", "{run}", "x", "--student", "brd"], ["OWNER/NAME"]),
        (["push", "{run}", "me/x", "--student", "brd", "--note", "n"], ["--note", "--student"]),
        (["push", "{run}", "me/x", "--student", "brd", "--licence", "CC BY"], ["--licence CC BY"]),
        (["push", "{run}", "me/x", "--student", "further"], ["--student further", "no such arm"]),
    ],
)
def test_wrong_input_is_one_line(whole: dict[str, Any], brd_here: Brd, arguments: list[str], words: list[str]) -> None:
    failed(brd_here(*(one.format(run=whole["path"]) for one in arguments)), *words)


def test_a_student_that_is_not_current_is_not_handed_on(run: Path, brd_here: Brd) -> None:
    (run / "steps" / "train.brd.json").unlink()
    failed(brd_here("push", run, "me/x", "--student", "brd"), "has not been trained", "brd train")
    failed(brd_here("export", run, "--format", "gguf", "--student", "brd", "--out", "a"), "has not been trained")


def test_a_recipe_does_not_teach_its_own_student(run: Path, brd_here: Brd) -> None:
    again = recipes.load(str(run / "recipe.yaml"), [f"student.model={run / 'students' / 'brd'}"])
    with pytest.raises(BrdError, match=r"student.model: .*trained by this very recipe \(arm brd\)"):
        check_start(again)
    failed(brd_here("train", run / "recipe.yaml", "--set", f"student.model={run / 'students' / 'brd'}"), "arm brd")
    # What is untrained, or another recipe's, is a student as any other.
    check_start(recipes.changed(again, {"name": "other"}))
    check_start(recipes.changed(again, {"student.model": str(run / "students" / "base")}))


def test_a_new_card_is_no_new_student_to_others(run: Path) -> None:
    student = run / "students" / "brd"
    other = recipes.changed(recipes.load(str(run / "recipe.yaml")), {"name": "other", "student.model": str(student)})

    def prints() -> str:
        return Pipeline(other, RunFolder(run.with_name("other"), other), Console()).train_print("brd")

    first = prints()
    (student / "README.md").write_text("Other words.")
    assert prints() == first
    (student / "config.json").write_text((student / "config.json").read_text() + " ")
    assert prints() != first
