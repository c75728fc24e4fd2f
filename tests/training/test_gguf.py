"""GGUF files of students: llama.cpp splits text as the student's tokenizer does, and gives the same probabilities."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from brd.errors import BrdError
from brd.training import gguf
from brd.training.gguf import write_gguf
from brd.training.student import load_model, load_tokenizer

PROMPTS = [
    "The ferry was late again, and nobody minded.",
    "Mira Okafor sailed to Oslo in 1987 with 12,500 books",
    "  Two spaces, a tab\tand\n\na blank line.\n",
    "I'll say it's HER'S, they've said; WE'RE",
    "naïve café 🚢 漢字 Zürich",
    "x = (a+b)*3.14159; // done!?",
    "2024-11-29T10:42:16",
    "Don't stop...   ",
    "A",
    "\n\n\n",
    "Question: Who was late?\nAnswer:",
    "one two three four five six seven eight nine ten " * 5,
    "e = mc²",
    "\u00a0non-breaking\u2028line",
    "ALL CAPS AND all small And Mixed",
    "a,b;c:d!e?f",
    "The 3rd of 100000000 tries",
    "'quoted' \"twice\"",
    "_under_score__ and-hyphen",
    "The end",
]


class LlamaCpp:
    """llama.cpp's server around a file: its tokens of a text, and the log-probabilities of what comes next."""

    def __init__(self, file: Path, threads: int = 1) -> None:
        xllamacpp = pytest.importorskip("xllamacpp")
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_parallel, settings.n_ctx, settings.n_threads_http = 1, 512, 2
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        # Its defaults compute attention in float16, which is what differs most.
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.warmup = settings.ui = False
        settings.verbosity = -1
        self._server = xllamacpp.Server(settings)
        self._server.handle_completions({"prompt": [0], "max_tokens": 1})

    def tokens(self, text: str) -> list[int]:
        data = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            self._server.listening_address + "/tokenize", data, {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as reply:
            return list(json.load(reply)["tokens"])

    def next_tokens(self, tokens: list[int], count: int = 20) -> dict[int, float]:
        data = json.dumps({"prompt": tokens, "n_predict": 1, "n_probs": count, "temperature": 0.0}).encode()
        request = urllib.request.Request(
            self._server.listening_address + "/completion", data, {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as reply:
            (found,) = json.load(reply)["completion_probabilities"]
        return {one["id"]: one["logprob"] for one in found["top_logprobs"]}


@contextmanager
def opened(folder: Path, file: Path, **options: Any) -> Iterator[LlamaCpp]:
    write_gguf(folder, file, "a student", **options)
    server = LlamaCpp(file)
    yield server
    server._server = None


def most_apart(folder: Path, server: LlamaCpp) -> float:
    """The greatest difference in log-probability between llama.cpp and transformers, over all prompts' next tokens."""
    model, tokenizer = load_model(str(folder), torch.float32).eval(), load_tokenizer(str(folder))
    worst = 0.0
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        assert server.tokens(prompt) == ids, prompt
        with torch.no_grad():
            ours = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        theirs = server.next_tokens(ids)
        assert len(theirs) == 20
        worst = max(worst, *(abs(float(ours[token]) - value) for token, value in theirs.items()))
    return worst


def random_model(folder: Path, config: Any, tokenizer: Any) -> Path:
    import transformers as t

    torch.manual_seed(1)
    model = t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that positions, heads and biases tell.
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings_of(name: str, tokenizer: Any, **changed: Any) -> Any:
    import transformers as t

    usual: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return {"llama": t.LlamaConfig, "qwen2": t.Qwen2Config, "gpt2": t.GPT2Config}[name](**{**usual, **changed})


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "head_dim": 32, "rope_parameters": LLAMA3}),
        ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("qwen2", {"vocab_size": 49_200, "rms_norm_eps": 1e-5}),
    ],
)
def test_llama_cpp_gives_the_same_probabilities(
    name: str, changed: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = random_model(tmp_path / name, settings_of(name, tokenizer, **changed), tokenizer)
    with opened(folder, tmp_path / "a.gguf", licence="apache-2.0") as server:
        assert most_apart(folder, server) < 1e-3


def test_the_comparison_sees_rows_in_the_wrong_order(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_model(tmp_path / "llama", settings_of("llama", tokenizer), tokenizer)
    monkeypatch.setattr(gguf, "_interleaved", lambda values, heads: values)
    with opened(folder, tmp_path / "a.gguf") as server:
        assert most_apart(folder, server) > 0.1


def trained_tokenizer(split: Any, normalizer: Any = None, ignore_merges: bool = False, bos: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, processors, trainers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    bare.pre_tokenizer, bare.decoder = split, decoders.ByteLevel()
    if normalizer is not None:
        bare.normalizer = normalizer
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=pre.ByteLevel.alphabet())
    bare.train_from_iterator(PROMPTS * 3, trainer)
    if bos:
        bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def splits() -> dict[str, Callable[[], Any]]:
    from tokenizers import Regex, normalizers, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    def pattern(regex: str) -> Any:
        split = pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False)
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    three = PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")
    return {
        "gpt-2": lambda: trained_tokenizer(words),
        "smollm": lambda: trained_tokenizer(digits),
        "qwen2": lambda: trained_tokenizer(pattern(PRETOKENIZE_REGEX), normalizers.NFC()),
        "llama-bpe": lambda: trained_tokenizer(pattern(three), ignore_merges=True, bos=True),
    }


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_every_rule_of_splitting_is_told(kind: str, tmp_path: Path) -> None:
    from gguf import GGUFReader

    made = splits()[kind]()
    folder = random_model(tmp_path / "student", settings_of("llama", made, hidden_size=32), made)
    with opened(folder, tmp_path / "a.gguf") as server:
        for prompt in PROMPTS:
            assert server.tokens(prompt) == made(prompt)["input_ids"], prompt
    fields = GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == kind
    assert fields["tokenizer.ggml.add_bos_token"].contents() is (kind == "llama-bpe")


def test_what_llama_cpp_would_not_compute_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def refused(words: str, config: Any, its: Any = tokenizer) -> None:
        folder = random_model(tmp_path / "student", config, its)
        with pytest.raises(BrdError, match=words):
            write_gguf(folder, tmp_path / "a.gguf", "a student")
        assert not (tmp_path / "a.gguf").exists()

    llama = settings_of("llama", tokenizer)
    refused(r"model of type gpt2 has no GGUF export.*llama and qwen2", settings_of("gpt2", tokenizer))
    refused("with silu only.*gelu", settings_of("llama", tokenizer, hidden_act="gelu"))
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    refused("no sliding attention", settings_of("qwen2", tokenizer, **sliding))
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256}
    refused("rotary positions of kind yarn", settings_of("llama", tokenizer, rope_parameters=yarn))
    refused("rotary positions of kind llama3", settings_of("qwen2", tokenizer, rope_parameters=LLAMA3))
    prefixed = trained_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True))
    refused("no rule known here that splits text", llama, prefixed)
    words = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    refused("no byte-level BPE", llama, PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"))
    refused("tokenizer has token 49151, its embeddings have 100 rows", settings_of("llama", tokenizer, vocab_size=100))


def test_an_embedded_student(tmp_path: Path) -> None:
    """The real thing in float32, 540 MB: log-probabilities on the prompts above."""
    from brd.embedded import smollm2_folder

    with opened(smollm2_folder(), tmp_path / "a.gguf") as server:
        assert most_apart(smollm2_folder(), server) < 1e-3
