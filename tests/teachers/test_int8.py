"""Linear layers in 8-bit integers: near the plain ones, the same in any batch, and a teacher in that dtype."""

from pathlib import Path
from typing import Any

import pytest
import torch

from brd.errors import BrdError
from brd.inference.int8_linear import Int8Linear, quantise
from brd.sections.teacher import Teacher as Settings
from brd.teachers import shared_prefix


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_near_and_do_not_depend_on_the_batch(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 40, bias=bias)
    layer = Int8Linear(plain)
    rows = torch.randn(9, 96)
    # One token far larger than the others must not cost them their precision.
    rows[4] *= 1000
    wanted, found = plain(rows), layer(rows.to(dtype))
    assert found.dtype == dtype
    error = (found.float() - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.max() < 0.02
    for number in range(9):
        assert torch.equal(layer(rows[number : number + 1].to(dtype)), found[number : number + 1])
    assert torch.equal(layer(rows.view(3, 3, 96).to(dtype)), found.view(3, 3, 40))
    assert torch.isfinite(layer(torch.zeros(1, 96))).all()


def test_all_layers_but_the_logits_are_replaced(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(20)[None]
    before = model(ids).logits
    quantise(model)
    assert type(model.lm_head) is torch.nn.Linear
    assert sum(type(m) is Int8Linear for m in model.modules()) == 4 * 7
    assert sum(type(m) is torch.nn.Linear for m in model.modules()) == 1
    after = model(ids).logits
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()


def test_a_teacher_in_int8_answers_alike_at_any_batch_size(tiny_model: Path) -> None:
    suffixes = [f"Sentence: number {n} of some.\nEntities:" for n in range(7)]
    answers = []
    for batch in (1, 3, 7):
        settings = Settings(model=str(tiny_model), dtype="int8", batch_size=batch)
        teacher = shared_prefix.load(settings)
        assert teacher.identity()["dtype"] == "int8"
        assert teacher.fallback is None
        answers.append(dict(teacher.answer("A prefix.\n\n", suffixes, stop=("\n",), max_new_tokens=6)))
    assert answers[0] == answers[1] == answers[2]


def test_elsewhere_than_on_the_cpu_it_is_refused() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(4, 4, device="meta"))
    with pytest.raises(BrdError, match=r"teacher\.dtype: int8 runs on the CPU only"):
        quantise(model)
