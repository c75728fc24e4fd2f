"""A behavior in a user's own file: the one of docs/behaviors.md, and files that are wrong."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted import Scripted

from brd import recipe as recipes
from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.reading.behavior import WithTraits, load_behaviors
from brd.reading.reader import Readings
from brd.run import RunFolder

PAGE = (Path(__file__).parents[2] / "docs" / "behaviors.md").read_text(encoding="utf-8")
CODE, EXEMPLARS = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "yaml"))


def write(behavior: str, sentence: str) -> str:
    first = " ".join(sentence.split()[:3])
    if behavior == "Tone:":
        return f" calm ({first})" if "a" in first else f" merry ({first})"
    return " none" if behavior == "ner" else f" What does the sentence begin with?\nAnswer: {first}"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The files of the page in a folder ``my``."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "tone.py").write_text(CODE[0], encoding="utf-8")
    (tmp_path / "my" / "tone.yaml").write_text(EXEMPLARS[0], encoding="utf-8")
    return tmp_path / "my" / "tone.py"


@pytest.fixture
def pipeline(recipe_file: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Opens the pipeline of a recipe with these sections in ``run``, whose teacher is scripted."""
    with pytest.MonkeyPatch.context() as patch:
        teacher = Scripted(write)
        patch.setattr("brd.teachers.LazyTeacher", lambda _: teacher)

        def opened(**sections: Any) -> Pipeline:
            loaded = recipes.load(str(recipe_file(**sections)))
            made = Pipeline(loaded, RunFolder(tmp_path / "run", loaded), Console())
            made.teacher = teacher  # type: ignore[attr-defined]
            return made

        yield opened


def test_the_page_keeps_what_it_promises(
    own: Path,
    pipeline: Callable[..., Pipeline],
    tmp_path: Path,
    brd_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert len(CODE) == len(EXEMPLARS) == 1
    assert len(CODE[0].splitlines()) <= 40
    reading = {"behaviors": ["ner", "qra", "my/tone.py"], "sentences": 12, "held_out_sentences": 6}
    road = pipeline(reading=reading, composing={"row_tokens": 64, "mix": {"tone": 0.5}})
    road.read()
    road.compose()
    meta = json.loads((tmp_path / "run" / "composed" / "brd" / "meta.json").read_text())
    assert 0 < meta["lessons"]["tone"] < meta["lessons"]["ner"]
    found = [r for _, _, r in Readings(road.recipe, road.readings_folder).all(False) if r.behavior == "tone"]
    assert {r.verdict for r in found} == {"verified", "rejected"}
    assert {r.reason for r in found} == {"", "unknown tone"}

    done = brd_here("audit", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^tone +asked", done.stdout, re.MULTILINE)
    figures = json.loads((tmp_path / "run" / "audit.json").read_text())["behaviors"]["tone"]
    assert figures["reasons"][0]["reason"] == "unknown tone"
    (tmp_path / "run" / "steps" / "read.json").touch()
    done = brd_here(
        "export", tmp_path / "run", "--format", "jsonl", "--behaviors", "tone", "--out", tmp_path / "tone.jsonl"
    )
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["behavior"] for line in (tmp_path / "tone.jsonl").open()} == {"tone"}


def test_a_change_of_the_code_judges_anew_and_one_of_the_exemplars_asks_anew(
    own: Path, pipeline: Callable[..., Pipeline]
) -> None:
    reading = {"behaviors": ["my/tone.py"], "sentences": 12, "held_out_sentences": 6}
    before = pipeline(reading=reading)
    before.read()
    teacher = before.teacher  # type: ignore[attr-defined]
    asked = teacher.asked
    assert before.state()["read"]

    own.write_text(CODE[0].replace('"cheerful"', '"merry"').replace("tone: cheerful", "tone: merry"))
    own.with_suffix(".yaml").write_text(EXEMPLARS[0].replace("cheerful", "calm"))
    prompt = pipeline(reading=reading)
    assert not prompt.state()["read"]
    own.with_suffix(".yaml").write_text(EXEMPLARS[0].replace("tone: cheerful", "tone: calm"))
    prompt.read()
    assert teacher.asked == 2 * asked
    assert not [r for *_, r in Readings(prompt.recipe, prompt.readings_folder).all(False) if r.reason]

    own.write_text(own.read_text().replace('"calm", ', '"calm", "new", '))
    code = pipeline(reading=reading)
    assert not code.state()["read"]
    code.read()
    assert teacher.asked == 2 * asked


def test_where_a_file_lies_is_no_part_of_a_fingerprint(own: Path, recipe_file: Callable[..., Path]) -> None:
    def read_print(path: str) -> str:
        loaded = recipes.load(str(recipe_file(reading={"behaviors": [path]})))
        return Pipeline(loaded, RunFolder(own.parent / "run", loaded), Console()).read_print()

    there = own.parent.parent / "elsewhere"
    there.mkdir()
    for name in ("tone.py", "tone.yaml"):
        (there / name).write_text((own.parent / name).read_text())
    assert read_print("my/tone.py") == read_print(str(there / "tone.py"))


def test_an_answer_on_which_the_code_fails_is_kept(own: Path, pipeline: Callable[..., Pipeline]) -> None:
    own.write_text(CODE[0].replace("unknown tone", "unknown").replace('judged(content, "unknown")', "nothing"))
    reading = {"behaviors": ["my/tone.py"], "sentences": 12, "held_out_sentences": 6}
    road = pipeline(reading=reading)
    road.read()
    failed = [r for *_, r in Readings(road.recipe, road.readings_folder).all(False) if r.verdict == "malformed"]
    assert failed
    assert all(r.raw.startswith(" merry") for r in failed)
    line = next(n for n, text in enumerate(own.read_text().splitlines(), 1) if "return nothing" in text)
    assert {r.reason for r in failed} == {f"judge failed: tone.py:{line}: NameError: name 'nothing' is not defined"}


def without(method: str) -> str:
    return re.sub(rf"    def {method}\(.*?(?=\n    def |\Z)", "", CODE[0], flags=re.DOTALL)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, ["tone.py: no such file"]),
        ("def tone(:", ["tone.py: cannot be run", "tone.py:1: SyntaxError"]),
        ("import nothing_of_that_name", ["tone.py:1: ModuleNotFoundError: No module named 'nothing_of_that_name'"]),
        ("x = 1\n\n1 / 0", ["tone.py:3: ZeroDivisionError"]),
        ("x = 1", ["one class with `name = 'tone'`", "it has no class", "docs/behaviors.md"]),
        (CODE[0].replace('"tone", "Tone:"', '"tones", "Tone:"'), ["`name = 'tone'`", "its classes: Tone"]),
        (without("render"), ["class Tone has no render"]),
        (without("given").replace("skill = ", "skil = "), ["class Tone has no skill, given"]),
        (CODE[0].replace('("\\n",), 32', '"\\n", 32'), ["stop should be a tuple of texts"]),
        (CODE[0].replace('("\\n",), 32', '("\\n",), "32"'), ["max_new_tokens should be a number above 0"]),
        (CODE[0].replace('("\\n",), 32', '("(",), 32'), ["tone.yaml: exemplar 1", "'('"]),
        (CODE[0].replace('"sad", ', ""), ["tone.yaml: exemplar 1", "(unknown tone)"]),
        (CODE[0].replace('exemplars["task"]', 'exemplars["tusk"]'), ["tone.yaml", "tone.py:12: KeyError: 'tusk'"]),
        (CODE[0].replace("sentence_and_cue(sentence, self.cue)", "sentence"), ["should end with the cue 'Tone:'"]),
        (CODE[0].replace("self.prefix = few", "few"), ["prefix should be a text"]),
        (CODE[0].replace('"words": words}', '"words": words.rsplit(" ", 1)[0]}'), ["parse(render(content))"]),
        (CODE[0].replace('"Tone:"', '"Entities:"'), ["tone and ner have the same cue 'Entities:'"]),
    ],
)
def test_a_file_that_is_no_behavior(own: Path, code: str | None, words: list[str]) -> None:
    own.unlink() if code is None else own.write_text(code)
    with pytest.raises(BrdError) as caught:
        load_behaviors(["ner", str(own)])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exemplars_that_are_missing_or_wrong(own: Path) -> None:
    file = own.with_suffix(".yaml")
    file.write_text("task: x\nexemplars: [\n")
    with pytest.raises(BrdError, match=r"tone.yaml:2: not valid YAML|tone.yaml:3: not valid YAML"):
        load_behaviors([str(own)])
    file.write_text("task: x\nexemplars: []\n")
    with pytest.raises(BrdError, match="should have exemplars"):
        load_behaviors([str(own)])
    with pytest.raises(BrdError, match=r"no exemplars in the language 'de'.*tone.de.yaml"):
        load_behaviors([str(own)], languages=["de"])
    file.unlink()
    with pytest.raises(BrdError, match=r"there should be a file .*my/tone.yaml"):
        load_behaviors([str(own)])


def test_exemplars_of_one_set_only(own: Path) -> None:
    folder = own.parent / "exemplars" / "instruct"
    folder.mkdir(parents=True)
    (folder / "tone.yaml").write_text(EXEMPLARS[0].replace("The tone", "Name the tone"))
    plain, instruct = (load_behaviors([str(own)], which)["tone"] for which in ("plain", "instruct"))
    assert plain.prefix.startswith("The tone")
    assert instruct.prefix.startswith("Name the tone")


def test_another_method_that_fails_names_its_line(own: Path) -> None:
    own.write_text(CODE[0] + "\n    def traits(self, content):\n        yield content['none']\n")
    behavior = load_behaviors([str(own)])["tone"]
    assert isinstance(behavior, WithTraits)
    with pytest.raises(BrdError, match=r"tone.py: traits failed: tone.py:43: KeyError"):
        behavior.traits({})


@pytest.mark.parametrize(
    ("behaviors", "words"),
    [
        (["my/Tone.py"], ["should be named in small letters"]),
        (["my/ner.py"], ["'ner' names something of ours"]),
        (["ner", "my/tone.py", "other/tone.py"], ["a behavior is named twice"]),
        (["my/tone.txt"], ["unknown behavior 'my/tone.txt'"]),
    ],
)
def test_names_of_files(tmp_path: Path, behaviors: list[str], words: list[str]) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "x", "reading": {"behaviors": behaviors}}))
    with pytest.raises(BrdError) as caught:
        recipes.load(str(tmp_path / "r.yaml"))
    for word in words:
        assert word in str(caught.value)


def test_the_mix_takes_names_of_files_that_are_read_only(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nreading: {behaviors: [my/tone.py]}\ncomposing:\n  mix: {tone: 2, paraphrase: 1}\n")
    loaded = recipes.load(str(path))
    assert loaded.composing.weight("tone") == 2
    assert loaded.reading.behaviors == [str(tmp_path / "my" / "tone.py")]
    path.write_text("name: x\ncomposing:\n  mix: {tone: 2}\n")
    with pytest.raises(BrdError, match=r"r.yaml:3: composing.mix: unknown part of the mix 'tone'"):
        recipes.load(str(path))


def test_validate_names_a_file_that_is_missing(
    brd_here: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path]
) -> None:
    done = brd_here("validate", recipe_file(), "--set", "reading.behaviors=[ner, ./tone.py]")
    assert done.returncode == 2
    assert "tone.py: no such file" in done.stderr
