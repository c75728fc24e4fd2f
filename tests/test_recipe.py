from pathlib import Path
from typing import get_args

import pytest
import yaml

from brd import recipe
from brd.errors import BrdError
from brd.sections.filters import Filters
from brd.sections.section import Section
from brd.sections.teacher import Server
from brd.text.filters import FILTERS


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: x\ntext:\n  layuot: line\n", 3, ["text.layuot", "did you mean 'layout'"]),
        ("name: x\n\ntrainning: {}\n", 3, ["trainning", "did you mean 'training'"]),
        ("name: x\ntraining:\n  epochs: 0\n", 3, ["training.epochs", "greater than 0"]),
        ("name: x\ntraining:\n  learning_rate: fast\n", 3, ["training.learning_rate", "number", "'fast'"]),
        ("name: x\nreading:\n  behaviors: [nerr]\n", 3, ["unknown behavior 'nerr'", "did you mean 'ner'"]),
        ("name: x\nteacher:\n  kind: shared_prefixx\n", 3, ["unknown teacher", "did you mean 'shared_prefix'"]),
        ("name: x\narms: [base, bdr]\n", 2, ["unknown arm 'bdr'", "did you mean 'brd'"]),
        ("name: x\narms: [base, base]\n", 2, ["named twice"]),
        ("name: x\ncomposing:\n  mix: {nerr: 1}\n", 3, ["composing.mix", "'nerr'"]),
        ("name: x\ntraining:\n  rows_per_step: 3\n  micro_rows: 2\n", 4, ["must divide"]),
        ("name: x\nevaluation:\n  half: c\n", 3, ["evaluation.half", "'a'", "'b'"]),
        ("name: ../x\n", 1, ["name"]),
        ("name: x\nteacher:\n  kind: openai\n", 2, ["teacher.model", "name on the server"]),
        ("name: x\nteacher:\n  kind: openai\n  model: m\n", 2, ["teacher.server", "base_url is missing"]),
        ("name: x\nteacher:\n  server:\n    base_ulr: a\n", 4, ["teacher.server.base_ulr", "did you mean 'base_url'"]),
        ("name: x\nteacher:\n  server:\n    base_url: localhost:80\n", 4, ["base_url", "http://localhost:8000/v1"]),
        ("name: x\nteacher:\n  server:\n    base_url: http://a:b/v1\n", 4, ["base_url", "of the form"]),
        ("name: x\nteacher:\n  server:\n    concurrency: 0\n", 4, ["concurrency", "greater than"]),
        ("name: x\nteacher:\n  server:\n    extra: {stream: true}\n", 4, ["extra", "'stream' cannot be set"]),
        ("name: x\nteacher:\n  server:\n    extra: {a: 2026-01-02}\n", 4, ["extra", "what JSON can hold"]),
        ("text: {}\n", None, ["'name' is missing"]),
        ("name: [\n", 2, ["not valid YAML"]),
        ("- a\n", None, ["YAML mapping"]),
    ],
)
def test_wrong_recipes_name_line_and_key(tmp_path: Path, text: str, line: int | None, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BrdError) as caught:
        recipe.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}:{line}: " if line else path)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "line", ["key_variable: sk-secret", "key_variable: hf_secret", "base_url: https://me:secret@a/v1?k=secret"]
)
def test_a_key_in_a_recipe_is_refused_and_not_shown(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"name: x\nteacher:\n  server:\n    {line}\n")
    with pytest.raises(BrdError, match=r"key_variable") as caught:
        recipe.load(path)
    assert "secret" not in str(caught.value)


def test_a_servers_model_is_no_path_and_its_address_ends_in_v1(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    server = "server: {base_url: 'http://localhost:8000/', ca_bundle: own.pem}"
    loaded = recipe.load(write(tmp_path, f"name: x\nteacher: {{kind: openai, model: local, {server}}}\n"))
    assert loaded.teacher.model == "local"
    assert loaded.teacher.server.base_url == "http://localhost:8000/v1"
    assert loaded.teacher.server.ca_bundle == str(tmp_path / "own.pem")
    other = recipe.load("demo", ["teacher.server.base_url=https://host/openai/v1/"])
    assert other.teacher.server.base_url == "https://host/openai/v1"


def test_missing_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(BrdError, match=r"nowhere.yaml: no such recipe file.*demo"):
        recipe.load("nowhere.yaml")


def test_overrides_reach_any_key_and_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\n")
    loaded = recipe.load(path, ["training.learning_rate=5e-5", "arms=[base, brd]", "composing.mix.ner=0"])
    assert loaded.training.learning_rate == 5e-5
    assert loaded.arms == ["base", "brd"]
    assert loaded.composing.weight("ner") == 0
    assert loaded.composing.weight("qra") == 1
    with pytest.raises(BrdError, match=r"section.key=value"):
        recipe.load(path, ["training.epochs"])
    with pytest.raises(BrdError, match=r"did you mean 'epochs'"):
        recipe.load(path, ["training.epoch=2"])


def test_relative_paths_are_taken_from_the_recipe_and_overrides_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    path = write(tmp_path / "there", "name: x\ntext:\n  source: corpus/*.txt\nstudent: {model: ./student}\n")
    monkeypatch.chdir(tmp_path)
    loaded = recipe.load(path)
    assert loaded.text.source == [str(tmp_path / "there" / "corpus" / "*.txt")]
    assert loaded.student.model == str(tmp_path / "there" / "student")
    assert recipe.load(path, ["text.source=~/a.txt"]).text.source == [str(Path.home() / "a.txt")]
    assert recipe.load(path, ["text.source=a.txt"]).text.source == [str(tmp_path / "a.txt")]
    assert recipe.load(path, ["student.model=someone/model"]).student.model == "someone/model"


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    loaded = recipe.load("demo")
    assert recipe.load(write(tmp_path, recipe.dump(loaded))) == loaded


def test_the_demo_recipe_names_and_comments_every_key() -> None:
    source = recipe.find("demo").read_text(encoding="utf-8")
    tree = yaml.safe_load(source)
    for name, field in recipe.Recipe.model_fields.items():
        assert name in tree
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            assert set(tree[name]) == set(section.model_fields)
    assert set(tree["teacher"]["server"]) == set(Server.model_fields)
    assert list(tree["text"]["filters"]) == [*FILTERS, "spare"]
    for name, field in Filters.model_fields.items():
        for section in get_args(field.annotation):
            if isinstance(section, type) and issubclass(section, Section):
                begun = source.index(f"    {name}: null")
                assert all(f"{key}: " in source[begun : begun + 500] for key in section.model_fields), name
