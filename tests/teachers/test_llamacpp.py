"""The llama.cpp teacher: greedy, parallel, and clean about what goes wrong."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brd.embedded import MODEL_NAME, smollm2_gguf
from brd.errors import BrdError, TeacherUnreachable
from brd.sections.teacher import Teacher as Settings
from brd.teachers import llamacpp
from brd.teachers.llamacpp import LlamaCpp

pytest.importorskip("xllamacpp")

PREFIX = (
    "Name the animals.\n\nSentence: The dog sees a cat.\nAnimals: dog, cat\n\nSentence: Nobody came.\nAnimals: none\n\n"
)
SENTENCES = ["A horse and two sheep stood in the rain.", "She ate.", "The fox met a hen, a goose and a duck."]
SUFFIXES = [f"Sentence: {s}\nAnimals:" for s in SENTENCES]


@pytest.fixture(scope="module")
def teacher() -> Iterator[LlamaCpp]:
    # One thread: llama.cpp's threads wait for each other busily, and crawl where other programs run too.
    teacher = LlamaCpp(smollm2_gguf(), slots=2, threads=1)
    yield teacher
    teacher.close()


def test_answers_end_before_the_stop_string(teacher: LlamaCpp) -> None:
    answers = dict(teacher.answer(PREFIX, SUFFIXES, stop=("\n", ","), max_new_tokens=24))
    assert sorted(answers) == [0, 1, 2]
    assert "horse" in answers[0].text
    for index, answer in answers.items():
        assert answer.finished
        assert not set("\n,") & set(answer.text)
        assert 1 <= answer.new_tokens <= 24
        assert answer.prompt_tokens == teacher.count_tokens(PREFIX) + teacher.count_tokens(SUFFIXES[index])


def test_greedy_whatever_the_slots(teacher: LlamaCpp) -> None:
    one = [dict(teacher.answer(PREFIX, [s], stop=("\n",), max_new_tokens=12))[0].text for s in SUFFIXES[::2]]
    again = dict(teacher.answer(PREFIX, SUFFIXES[::2], stop=("\n",), max_new_tokens=12))
    assert [again[0].text, again[1].text] == one


def test_length_limit_and_longer_prompts(teacher: LlamaCpp) -> None:
    short = dict(teacher.answer(PREFIX, SUFFIXES[:1], stop=("\0",), max_new_tokens=3))[0]
    assert not short.finished
    assert short.new_tokens == 3
    # Longer than the slots that the server was started with.
    long = "Sentence: " + "The dog barked. " * 150 + "\nAnimals:"
    answer = dict(teacher.answer(PREFIX, [long], stop=("\n",), max_new_tokens=4))[0]
    assert answer.prompt_tokens > 600
    assert list(teacher.answer(PREFIX, [], stop=("\n",), max_new_tokens=4)) == []


def test_prompt_beyond_the_context_is_named(teacher: LlamaCpp) -> None:
    with pytest.raises(BrdError, match=rf"prompt 1 is longer .* {teacher.context_length}$"):
        teacher.answer(PREFIX, [SUFFIXES[0], "word " * 9000], stop=("\n",), max_new_tokens=8)


def test_a_closed_answer_leaves_the_teacher_usable(teacher: LlamaCpp) -> None:
    half = teacher.answer(PREFIX, SUFFIXES * 4, stop=("\n",), max_new_tokens=6)
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert len(list(teacher.answer(PREFIX, SUFFIXES[:1], stop=("\n",), max_new_tokens=6))) == 1


def test_identity_and_chat_template() -> None:
    teacher = LlamaCpp(smollm2_gguf(), slots=1, chat_template=True, threads=1)
    try:
        assert teacher.identity()["chat_template"] == "turns"
        assert teacher.identity()["model"].startswith("sha256:")
        answer = dict(teacher.answer("Say yes or no. ", ["Is water wet?"], stop=("\n",), max_new_tokens=4))[0]
        # The template adds its own words around the message.
        message = teacher.count_tokens("Say yes or no. ") + teacher.count_tokens("Is water wet?")
        assert answer.prompt_tokens > message + 8
    finally:
        teacher.close()


def test_load_by_the_embedded_models_name() -> None:
    teacher = llamacpp.load(Settings(kind="llamacpp", model=MODEL_NAME, batch_size=2))
    assert teacher.context_length == 8192
    teacher.close()


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match=r"nowhere\.gguf: no such GGUF file"):
        llamacpp.load(Settings(kind="llamacpp", model=str(tmp_path / "nowhere.gguf")))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(TeacherUnreachable, match=r"broken\.gguf") as caught:
        llamacpp.load(Settings(kind="llamacpp", model=str(broken)))
    assert caught.value.exit_code == 3


def test_silent_and_clean_exit_without_close() -> None:
    code = (
        "from brd.embedded import smollm2_gguf\n"
        "from brd.teachers.llamacpp import LlamaCpp\n"
        "teacher = LlamaCpp(smollm2_gguf(), slots=1, threads=1)\n"
        "print(len(list(teacher.answer('One two three', [' four'], stop=(), max_new_tokens=2))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
