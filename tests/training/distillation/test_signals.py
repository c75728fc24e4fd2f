import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llama

from brd import hardware, recipe
from brd.composing.packing import TokenRows, pack
from brd.errors import BrdError
from brd.sections.distillation import Distillation
from brd.training.distillation import signals
from brd.training.distillation.knowledge import KnowledgeDistillation
from brd.training.distillation.signals import (
    BYTES_A_TOKEN,
    About,
    about_signals,
    check_kept,
    pack_positions,
    signals_of,
    unpack_positions,
)
from brd.training.distillation.teacher import (
    LaterTeacher,
    LogitTeacher,
    check_same_tokens,
    identity,
    load_logit_teacher,
)

VOCABULARY, ROW = 40, 16
KEPT = Distillation(top=10, drawn=4)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(0).integers(0, VOCABULARY, 11 * ROW).tolist()
    pack([numbers], tmp_path / "tokens", row_tokens=ROW, vocabulary=VOCABULARY)
    return tmp_path / "tokens"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PART_ROWS", 4)


@pytest.mark.parametrize("vocabulary", [49_152, 2**16, 151_936])
def test_what_is_kept_by_default_fits(vocabulary: int) -> None:
    kept = Distillation()
    about = About({}, "", 1, 1, vocabulary, kept.top, kept.drawn, 1.0)
    check_kept(about)
    assert about.record.itemsize <= BYTES_A_TOKEN
    with pytest.raises(BrdError, match=r"distillation\.top.*take \d+ bytes a token.*120 is the limit"):
        check_kept(About({}, "", 1, 1, vocabulary, 40, kept.drawn, 1.0))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000), st.floats(0.01, 30), st.integers(1, 20), st.integers(0, 9), st.sampled_from([300, 70_000])
)
def test_what_is_read_back_is_the_teachers_distribution(
    seed: int, spread: float, top: int, drawn: int, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logs = torch.log_softmax(spread * torch.randn(3, vocabulary, generator=generator), -1)
    about = About({}, "", 1, 3, vocabulary, top, drawn, 1.0)
    found = unpack_positions(pack_positions(logs, about, generator))
    ids, probabilities, tail = found.values()
    assert torch.equal(ids[:, :top].sort().values, logs.topk(top).indices.sort().values)
    torch.testing.assert_close(probabilities.sum(1) + tail, torch.ones(3))
    # Those that are likelier than a billionth, as far as bytes can tell.
    exact = logs.gather(1, ids[:, :top])
    seen = exact > -15
    off = (probabilities[:, :top].log() - exact)[seen].abs()
    assert not len(off) or float(off.max()) < 0.07
    mass = logs.exp().scatter(1, ids[:, :top], 0.0).sum(1)
    torch.testing.assert_close(probabilities[:, top:].sum(1) if drawn else tail, mass, atol=1e-5, rtol=1e-3)
    assert bool((tail == 0).all()) or not drawn


def test_signals_are_made_once_and_what_was_made_before_an_interruption_is_kept(tokens: Path, tmp_path: Path) -> None:
    about = about_signals(tokens, {"model": "a"}, VOCABULARY, KEPT)
    whole = signals_of(tokens, tmp_path / "whole", about, lambda: LogitTeacher(llama(1).float(), VOCABULARY))

    class Killed(LogitTeacher):
        asked = 0

        def states(self, ids: torch.Tensor) -> torch.Tensor:
            self.asked += 1
            if self.asked > 2:
                raise KeyboardInterrupt
            return super().states(ids)

    with pytest.raises(KeyboardInterrupt):
        signals_of(tokens, tmp_path / "broken", about, lambda: Killed(llama(1).float(), VOCABULARY))
    folder = tmp_path / "broken" / about.name
    assert sorted(path.name for path in folder.glob("*.bin")) == ["part-00000.bin", "part-00001.bin"]
    # A part without its checksum was being written.
    (folder / "part-00001.json").unlink()
    told: list[int] = []
    again = signals_of(
        tokens,
        tmp_path / "broken",
        about,
        lambda: LogitTeacher(llama(1).float(), VOCABULARY),
        lambda _, done, total, __: told.append(done),
    )
    assert told == [4, 8]
    for row in range(11):
        for key, value in whole[row].items():
            assert torch.equal(again[row][key], value), (row, key)

    def none() -> LogitTeacher:
        raise AssertionError("the teacher was asked again")

    signals_of(tokens, tmp_path / "whole", about, none)


def test_they_are_the_teachers_probabilities_of_the_row(tokens: Path, tmp_path: Path) -> None:
    teacher = llama(1).float()
    about = about_signals(tokens, {"model": "a"}, VOCABULARY, Distillation(top=10, drawn=0, temperature=2.0))
    found = signals_of(tokens, tmp_path, about, lambda: LogitTeacher(teacher, VOCABULARY))
    for number, row in enumerate(TokenRows(tokens)[n] for n in range(11)):
        with torch.no_grad():
            exact = torch.softmax(teacher(input_ids=torch.from_numpy(row)[None]).logits[0] / 2, -1)
        kept = found[number]
        torch.testing.assert_close(
            exact.gather(1, kept["teacher_ids"]), kept["teacher_probabilities"], rtol=0.07, atol=0
        )


def test_wrong_or_torn_files_are_refused(tokens: Path, tmp_path: Path) -> None:
    def make(who: str = "a") -> Any:
        about = about_signals(tokens, {"model": who}, VOCABULARY, KEPT)
        return signals_of(tokens, tmp_path, about, lambda: LogitTeacher(llama(1).float(), VOCABULARY)), about

    _, about = make()
    folder = tmp_path / about.name
    _, other = make("b")
    assert other.name != about.name
    part = folder / "part-00001.bin"
    raw = part.read_bytes()
    for torn in (raw[:-1], b"\0" + raw[1:] if raw[0] else b"\1" + raw[1:]):
        part.write_bytes(torn)
        damaged, _ = make()
        damaged[0]
        with pytest.raises(BrdError, match=r"part-00001\.bin: damaged or missing; delete it"):
            damaged[5]
    (folder / "meta.json").unlink()
    mended, _ = make()
    assert part.read_bytes() == raw
    mended[5]
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "tokens": "another"}))
    with pytest.raises(BrdError, match="signals of another tokens"):
        make()
    for torn in (b"{", b"\xff", b""):
        (folder / "meta.json").write_bytes(torn)
        mended, _ = make()
        mended[5]


def test_rows_of_an_embedding_that_the_tokenizer_does_not_know_do_not_count() -> None:
    narrow, wide = llama(1).float(), llama(1, vocabulary=VOCABULARY + 8).float()
    wide.load_state_dict(
        {
            name: torch.cat([tensor, 9 * torch.ones_like(wide.state_dict()[name][VOCABULARY:])])
            if tensor.shape[0] == VOCABULARY
            else tensor
            for name, tensor in narrow.state_dict().items()
        }
    )
    ids = torch.arange(12)[None]
    logs = []
    for model in (narrow, wide):
        teacher = LogitTeacher(model, VOCABULARY)
        logs.append(teacher.log_probabilities(teacher.states(ids)[0]))
    torch.testing.assert_close(logs[0], logs[1])


def test_a_teacher_with_other_tokens_is_refused(tokenizer: Any, tiny_model: Path, recipe_file: Any) -> None:
    check_same_tokens(tokenizer, tokenizer, "itself")
    loaded = recipe.load(str(recipe_file()), ["composing.separator_as_token=true"])
    from brd.training.student import student_tokenizer

    with pytest.raises(
        BrdError, match=r"another tokenizer than the student \(1 tokens have another id or none"
    ) as told:
        load_logit_teacher(loaded, student_tokenizer(loaded))
    assert "\n" not in str(told.value)

    class Otherwise:
        def get_vocab(self) -> Any:
            return tokenizer.get_vocab()

        def __call__(self, text: str) -> Any:
            return {"input_ids": [0]}

    with pytest.raises(BrdError, match="a text is split otherwise"):
        check_same_tokens(Otherwise(), tokenizer, "teacher")


@pytest.mark.parametrize("arm", ["kd", "gkd@1", "minillm+brd"])
def test_a_teacher_that_gives_only_text_is_refused(recipe_file: Any, arm: str) -> None:
    path = recipe_file(teacher={"kind": "llamacpp", "model": "x.gguf"}, arms=["base", arm])
    with pytest.raises(BrdError, match=r"distillation\.teacher_model: a teacher of kind llamacpp gives text") as told:
        recipe.load(str(path))
    assert "\n" not in str(told.value)
    recipe.load(str(path), ["distillation.teacher_model=somewhere", "composing.row_tokens=128"])


def test_the_teacher_is_known_by_its_weights(recipe_file: Any, tiny_model: Path) -> None:
    named = recipe.load(str(recipe_file()), [f"distillation.teacher_model={tiny_model}", "teacher.model=elsewhere"])
    assert identity(named)["model"].startswith("sha256:")
    assert identity(named) == identity(recipe.load(str(recipe_file())))
    assert identity(recipe.load(str(recipe_file(distillation={"teacher_dtype": "bfloat16"}))))["dtype"] == "bfloat16"


def test_all_processes_load_the_teacher_in_the_dtype_that_one_has_found(
    recipe_file: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "fast_dtype", lambda: torch.bfloat16)
    sent = pickle.dumps(LaterTeacher(recipe.load(str(recipe_file())), tokenizer))
    monkeypatch.setattr(hardware, "fast_dtype", lambda: torch.float32)
    assert pickle.loads(sent)().model.dtype == torch.bfloat16


def test_students_of_kept_signals_come_as_near_to_the_teacher_as_one_of_all_logits() -> None:
    vocabulary, kept = 300, Distillation(top=20, drawn=12)
    teacher = LogitTeacher(llama(1, vocabulary, spread=4.0).float(), vocabulary)
    rows = torch.randint(0, vocabulary, (64, 24), generator=torch.Generator().manual_seed(0))
    train, held_out = rows[:48], rows[48:]
    about = About({}, "", 48, 24, vocabulary, kept.top, kept.drawn, 1.0)

    def logs(ids: torch.Tensor) -> torch.Tensor:
        return teacher.log_probabilities(teacher.states(ids).flatten(0, 1))

    signals_of_train = unpack_positions(pack_positions(logs(train), about, torch.Generator().manual_seed(0)))
    full = logs(train).view(48, 24, vocabulary)
    kept_rows = {key: value.unflatten(0, (48, 24)) for key, value in signals_of_train.items()}
    found = {}
    for way in ("all logits", "kept"):
        student = llama(2, vocabulary, spread=1.0, num_hidden_layers=1).float()
        optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
        for step in range(60):
            part = slice(step % 6 * 8, step % 6 * 8 + 8)
            if way == "kept":
                batch = {"input_ids": train[part], "labels": train[part]} | {k: v[part] for k, v in kept_rows.items()}
                loss = KnowledgeDistillation(1.0, 1.0, True)(student, batch, torch.tensor(8 * 23))
            else:
                ours = torch.log_softmax(student(input_ids=train[part]).logits[:, :-1], -1)
                loss = (full[part, :-1].exp() * (full[part, :-1] - ours)).sum() / (8 * 23)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            ours, theirs = torch.log_softmax(student(input_ids=held_out).logits.flatten(0, 1), -1), logs(held_out)
        found[way] = float((theirs.exp() * (theirs - ours)).sum(1).mean())
    assert found["kept"] < 1.02 * found["all logits"]
    # They have learnt: half of what an untrained student is off by is gone.
    assert found["all logits"] < 2.0
