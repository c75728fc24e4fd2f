"""The README's commands, word for word, at toy size."""

import lzma
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openai_server import Server

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("brd ")
]
SCORING = [command for command in COMMANDS if command.split()[1] in ("score", "contamination")]
SMALL = [
    "text.held_out=0.3",
    "reading.sentences=6",
    "reading.held_out_sentences=3",
    "teacher.max_new_tokens=24",
    "teacher.batch_size=2",
    "composing.row_tokens=64",
    "training.rows_per_step=1",
    "training.micro_rows=1",
    "arms=[base, brd]",
    "evaluation.tasks=[cb]",
    "evaluation.limit=2",
    "evaluation.reading_sentences=2",
    "evaluation.reading_prompted=false",
]


def test_the_readme_opens_with_a_picture_and_two_commands() -> None:
    opening = README.split("## ")[0]
    assert "](docs/report.png)" in opening
    assert "make demo" in opening
    assert "make test" in opening
    assert (Path(__file__).parent.parent / "docs" / "report.png").exists()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target


def test_scoring_commands_in_their_order(brd_here: Callable[..., Any], tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Vera Lind wrote a letter in Bergen.", encoding="utf-8")
    (tmp_path / "runs" / "demo" / "students").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "students" / "brd").symlink_to(tiny_model)
    assert len(SCORING) == 4
    for command in SCORING:
        done = brd_here(*shlex.split(command.replace("--limit 40", "--limit 3"))[1:])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in SCORING], ids=str)
def test_commands(brd: Callable[..., Any], tmp_path: Path, tiny_model: Path, command: str) -> None:
    from brd.embedded import smollm2_gguf

    (tmp_path / "corpus").mkdir()
    for n in range(6):
        text = f"Vera Lind wrote letter {n} in Bergen.\nNobody answered it for weeks."
        (tmp_path / "corpus" / f"{n}.txt").write_text(text, encoding="utf-8")
    documents = (f"Vera Lind wrote letter {n} in Bergen.\nNobody answered it for {n} weeks.\n" for n in range(6))
    (tmp_path / "en.txt.xz").write_bytes(lzma.compress("\n".join(documents).encode()))
    (tmp_path / "teacher.gguf").symlink_to(smollm2_gguf())
    (tmp_path / "student").symlink_to(tiny_model)
    small = list(SMALL)
    if "teacher." not in command:
        small.append(f"teacher.model={tiny_model}")
    if "student." not in command:
        small.append(f"student.model={tiny_model}")
    sets = [part for key in small for part in ("--set", key)]
    if " audit " in command:
        assert brd("read", "demo", *sets).returncode == 0
        sets = []
    if command.split()[1] in ("export", "push"):
        # The demo's own models have known licences.
        sets += [part for who in ("teacher", "student") for part in ("--set", f"licences.{who}=apache-2.0")]
        assert brd("run", "demo", "--until", "train", *sets).returncode == 0
        sets = []
    with Server() as server:
        command = command.replace("http://localhost:8000/v1", server.url)
        done = brd(*shlex.split(command)[1:], *sets)
        assert done.returncode == 0, done.stderr
        assert bool(server.asked) == ("teacher.server" in command)
    if " run " in command:
        assert next(tmp_path.glob("runs/*/report.html")).stat().st_size > 10_000
