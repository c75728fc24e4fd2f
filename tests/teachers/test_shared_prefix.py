"""The shared-prefix teacher gives the answers of ``generate``, one prompt at a time, whatever the batch."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from brd.embedded import smollm2_folder
from brd.errors import BrdError
from brd.sections.teacher import Teacher as Settings
from brd.teachers import chat, shared_prefix
from brd.teachers.shared_prefix import SharedPrefix
from brd.teachers.teacher import Answer

PREFIX = (
    "Name the animals.\n\nSentence: The dog sees a cat.\nAnimals: dog, cat\n\nSentence: Nobody came.\nAnimals: none\n\n"
)
SENTENCES = [
    "A horse and two sheep stood in the rain.",
    "She ate.",
    "The old fisherman of Trieste told us that no whale had been seen there since the spring of 1911, and that the "
    "dolphins, which his father used to feed by hand, had left with the herring.",
    "Müller’s 鶏 laid three eggs – “a record”.",
    "In the evening the fox came back.",
    "Rome, Paris, London.",
    "An owl, an owl, an owl!",
]
SUFFIXES = [f"Sentence: {s}\nAnimals:" for s in SENTENCES]
# Two candidates closer than this may change places with the order of a sum.
TIE = 1e-4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with more, and far slower where other programs are busy too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2() -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32).eval()


def tiny(kind: str) -> Any:
    """A small random model; weights large enough for its answers to vary with the prompt."""
    torch.manual_seed(7)
    common: dict[str, Any] = {"vocab_size": 49152, "initializer_range": 0.4, "bos_token_id": 1, "eos_token_id": 2}
    llama = {**common, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
    opt = {**common, "hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    gpt2 = {**common, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 512}
    xglm = {**common, "d_model": 48, "ffn_dim": 80, "num_layers": 2, "attention_heads": 4}
    makers: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**llama, num_key_value_heads=2)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**llama, num_key_value_heads=3, tie_word_embeddings=True)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2)),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**llama)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**llama, num_key_value_heads=2, sliding_window=16)),
        "opt": lambda: OPTForCausalLM(OPTConfig(**opt, max_position_embeddings=512, word_embed_proj_dim=48)),
        "mamba": lambda: MambaForCausalLM(MambaConfig(**common, hidden_size=48, num_hidden_layers=2)),
        "xglm": lambda: XGLMForCausalLM(XGLMConfig(**xglm, max_position_embeddings=512)),
    }
    return makers[kind]().eval()


def reference(
    model: Any, tokenizer: Any, prefix: Sequence[int], suffix: str, stop: Sequence[str], limit: int
) -> tuple[Answer, float]:
    """The answer by transformers' ``generate``, and how close its two best candidates came on the way."""
    prompt = [*prefix, *tokenizer(suffix, add_special_tokens=False)["input_ids"]]
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=limit,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = made.sequences[0, len(prompt) :].tolist()
    best = torch.stack(made.logits)[:, 0].topk(2).values
    for count in range(1, len(tokens) + 1):
        ended = tokens[count - 1] == tokenizer.eos_token_id
        text = tokenizer.decode(tokens[: count - ended], skip_special_tokens=True)
        places = [text.find(s) for s in stop if s in text]
        if places or ended or count == limit:
            text = text[: min(places)] if places else text
            margin = float((best[:count, 0] - best[:count, 1]).min())
            return Answer(text, len(prompt), count, bool(places) or ended), margin
    raise AssertionError("generate stopped early")


def assert_as_generate(
    teacher: SharedPrefix,
    model: Any,
    tokenizer: Any,
    *,
    prefix: str = PREFIX,
    suffixes: Sequence[str] = SUFFIXES,
    stop: Sequence[str] = ("\n",),
    limit: int = 16,
) -> None:
    answers = dict(teacher.answer(prefix, suffixes, stop=stop, max_new_tokens=limit))
    assert sorted(answers) == list(range(len(suffixes)))
    shared = tokenizer(prefix)["input_ids"]
    for index, suffix in enumerate(suffixes):
        wanted, margin = reference(model, tokenizer, shared, suffix, stop, limit)
        if answers[index] != wanted and margin < TIE:
            print(f"{suffix!r}: {answers[index]} for {wanted}, candidates within {margin:.1e}")
            continue
        assert answers[index] == wanted, f"{suffix!r} (margin {margin:.1e})"


def test_smollm2_answers_as_generate_does(smollm2: Any, tokenizer: Any) -> None:
    teacher = SharedPrefix(smollm2, tokenizer, batch_size=3)
    assert teacher.fallback is None
    assert_as_generate(teacher, smollm2, tokenizer, limit=12)
    assert teacher.stats.decoded == teacher.stats.useful > 0


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_architectures_in_flat_batches(kind: str, batch_size: int, tokenizer: Any) -> None:
    model = tiny(kind)
    teacher = SharedPrefix(model, tokenizer, batch_size=batch_size)
    assert teacher.fallback is None
    assert_as_generate(teacher, model, tokenizer, stop=("e", "1"))


@pytest.mark.parametrize("kind", ["mistral", "xglm", "mamba"])
def test_other_architectures_fall_back_and_say_so(
    kind: str, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(kind)
    teacher = SharedPrefix(model, tokenizer, batch_size=3)
    assert teacher.fallback
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ordinary batches" in said
    assert teacher.fallback in said
    assert_as_generate(teacher, model, tokenizer, stop=("e", "1"))


def test_sliding_window_that_is_switched_off_is_no_obstacle(tokenizer: Any) -> None:
    model = tiny("llama")
    model.config.sliding_window, model.config.use_sliding_window = 16, False
    assert SharedPrefix(model, tokenizer).fallback is None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_prefix_may_be_empty_and_so_may_suffixes(kind: str, tokenizer: Any) -> None:
    model = tiny(kind)
    teacher = SharedPrefix(model, tokenizer, batch_size=2)
    assert_as_generate(teacher, model, tokenizer, prefix="", stop=("e",))
    assert_as_generate(teacher, model, tokenizer, suffixes=["", "A", SUFFIXES[2], ""], stop=("e",))
    assert list(teacher.answer(PREFIX, [], stop=("e",), max_new_tokens=4)) == []
    with pytest.raises(BrdError, match="prompt 1 is empty"):
        teacher.answer("", ["a", ""], stop=("e",), max_new_tokens=4)


def test_beginning_of_text_comes_once_before_the_prefix(tokenizer: Any) -> None:
    class WithBos:
        """A tokenizer that adds BOS, as Llama's does."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: Any, add_special_tokens: bool = True) -> Any:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [1, *ids] if add_special_tokens else ids}

    model = tiny("llama")
    assert_as_generate(SharedPrefix(model, WithBos()), model, WithBos(), stop=("e",))


def test_stop_string_inside_and_across_tokens(tokenizer: Any) -> None:
    model = tiny("llama")
    teacher = SharedPrefix(model, tokenizer, batch_size=4)
    whole = dict(teacher.answer(PREFIX, SUFFIXES, stop=(), max_new_tokens=20))
    assert all(not a.finished and a.new_tokens == 20 for a in whole.values())
    ends = 0
    for width in (1, 2, 9):
        for index, answer in whole.items():
            text = answer.text.replace("\ufffd", "")
            stop = text[len(text) // 2 :][:width]
            cut = dict(teacher.answer(PREFIX, [SUFFIXES[index]], stop=("\0\0", stop), max_new_tokens=20))[0]
            if stop and stop in answer.text:
                ends += 1
                assert cut.text == answer.text[: answer.text.find(stop)]
                assert cut.finished
                assert cut.new_tokens < 20 or answer.text.endswith(stop)
    assert ends > 12


def test_text_is_cut_at_the_earliest_of_several_stops(smollm2: Any, tokenizer: Any) -> None:
    teacher = SharedPrefix(smollm2, tokenizer)
    for stop in (("\n", ","), (",", "\n"), ("\n\n", "\n", "Sent")):
        assert_as_generate(teacher, smollm2, tokenizer, suffixes=SUFFIXES[:2], stop=stop, limit=8)


def test_answers_do_not_depend_on_batch_or_order(tokenizer: Any) -> None:
    model = tiny("llama")
    seen = []
    for batch_size, step in ((1, 1), (2, -1), (5, 1), (64, -1)):
        teacher = SharedPrefix(model, tokenizer, batch_size=batch_size)
        answers = dict(teacher.answer(PREFIX, SUFFIXES[::step], stop=("e",), max_new_tokens=24))
        seen.append([answers[i] for i in range(len(SUFFIXES))][::step])
    assert all(other == seen[0] for other in seen)


def test_rows_are_refilled_as_they_end(tokenizer: Any) -> None:
    teacher = SharedPrefix(tiny("llama"), tokenizer, batch_size=2)
    answers = dict(teacher.answer(PREFIX, SUFFIXES * 3, stop=("e", "1"), max_new_tokens=30))
    lengths = [a.new_tokens for a in answers.values()]
    assert max(lengths) > 2 * min(lengths), "the answers should differ in length for this test to say anything"
    assert teacher.stats.decoded == teacher.stats.useful == sum(lengths)
    # Two at a time, each as long as it is: not two at a time up to the longer one.
    assert teacher.stats.steps <= sum(lengths) / 2 + max(lengths)


def test_prompt_beyond_the_context_is_named(tokenizer: Any) -> None:
    teacher = SharedPrefix(tiny("gpt2"), tokenizer)
    long = "Sentence: " + "word " * 600
    with pytest.raises(BrdError, match=r"prompt 1 is longer than the teacher's context: \d+ tokens .* 512"):
        teacher.answer(PREFIX, [SUFFIXES[0], long], stop=("\n",), max_new_tokens=8)
    fits = 512 - teacher.count_tokens(PREFIX) - teacher.count_tokens(SUFFIXES[0])
    assert len(list(teacher.answer(PREFIX, SUFFIXES[:1], stop=("\n\n\n",), max_new_tokens=fits))) == 1
    with pytest.raises(BrdError, match="prompt 0"):
        teacher.answer(PREFIX, SUFFIXES[:1], stop=("\n",), max_new_tokens=fits + 1)


def test_model_is_left_as_it_was_and_a_closed_answer_leaves_no_trace(tokenizer: Any) -> None:
    model = tiny("llama").train()
    before = model.config._attn_implementation
    teacher = SharedPrefix(model, tokenizer, batch_size=2)
    assert model.training
    half = teacher.answer(PREFIX, SUFFIXES, stop=("e",), max_new_tokens=16)
    next(half)
    # Between two answers the model can be used by others.
    assert model.config._attn_implementation == before
    tokens = torch.tensor([tokenizer(PREFIX)["input_ids"]])
    model(input_ids=tokens).logits.sum().backward()
    half.close()  # type: ignore[attr-defined]
    assert model.training
    assert model.config._attn_implementation == before
    assert_as_generate(teacher, model.eval(), tokenizer, stop=("e",))


def test_weights_that_change_between_two_calls_are_used(tokenizer: Any) -> None:
    model = tiny("llama")
    teacher = SharedPrefix(model, tokenizer)
    assert_as_generate(teacher, model, tokenizer, stop=("e",))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    assert_as_generate(teacher, model, tokenizer, stop=("e",))


def test_interrupt_in_a_step_leaves_the_model_usable(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    before = model.config._attn_implementation
    teacher = SharedPrefix(model, tokenizer, batch_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(model.lm_head, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(teacher.answer(PREFIX, SUFFIXES, stop=("e",), max_new_tokens=4))
    assert model.config._attn_implementation == before
    assert_as_generate(teacher, model, tokenizer, stop=("e",))


def test_chat_template_is_split_around_the_sentence(smollm2: Any, tokenizer: Any) -> None:
    teacher = SharedPrefix(smollm2, tokenizer, chat_template=True)
    answers = dict(teacher.answer(PREFIX, SUFFIXES[:3], stop=("\n",), max_new_tokens=8))
    for index, suffix in enumerate(SUFFIXES[:3]):
        given, _, cue = suffix.partition("\n")
        before, turn = chat.split(
            PREFIX, partial(tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False)
        )
        head, tail = before, turn(suffix)
        assert tail.startswith(given)
        assert tail.endswith(cue)
        shared = tokenizer(head, add_special_tokens=False)["input_ids"]
        assert answers[index] == reference(smollm2, tokenizer, shared, tail, ("\n",), 8)[0]
    assert teacher.identity()["chat_template"] == "turns"


def test_chat_template_that_is_not_there(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(BrdError, match="no chat template"):
        SharedPrefix(tiny("llama"), tokenizer, chat_template=True)


def test_sixteen_bit_answers(tokenizer: Any) -> None:
    model = tiny("llama").to(torch.bfloat16)
    teacher = SharedPrefix(model, tokenizer, batch_size=4)
    assert teacher.fallback is None
    assert teacher.identity()["dtype"] == "bfloat16"
    assert len(list(teacher.answer(PREFIX, SUFFIXES, stop=("e",), max_new_tokens=8))) == len(SUFFIXES)


def test_load_a_folder(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    settings = Settings(model=str(tmp_path), dtype="float32", batch_size=2)
    with pytest.raises(BrdError, match=r"no tokenizer \(tokenizer\.json"):
        shared_prefix.load(settings)
    tokenizer.save_pretrained(tmp_path)
    teacher = shared_prefix.load(settings)
    assert_as_generate(teacher, model, tokenizer, suffixes=SUFFIXES[:2], stop=("e",))
    identity = teacher.identity()
    assert identity["model"].startswith("sha256:")
    assert identity["decoding"] == "greedy"
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert shared_prefix.load(settings).identity()["model"] != identity["model"]


def test_load_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match="nowhere: no such model folder"):
        shared_prefix.load(Settings(model=str(tmp_path / "nowhere")))
    with pytest.raises(BrdError, match=r"config\.json and .*safetensors.* and .*tokenizer"):
        shared_prefix.load(Settings(model=str(tmp_path)))
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(BrdError, match="llamacpp"):
        shared_prefix.load(Settings(model=str(file)))
