"""What becomes of a student: a GGUF file of it against transformers, layers chosen by measuring against other choices.

    python benchmarks/students.py            # both, on the embedded student and texts
    python benchmarks/students.py --only gguf

Both sides of a comparison run in this process on the same threads.
"""

import argparse
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from brd import embedded
from brd.composing.compose import compose_held_out, held_out_texts
from brd.composing.packing import TokenRows
from brd.recipe import load
from brd.recipe_corpus import open_corpus
from brd.training.gguf import write_gguf
from brd.training.layers import block_influence, keep_layers
from brd.training.student import load_model, load_tokenizer, student_tokenizer

PROMPTS = 20
NEW_TOKENS = 64
TOP = 20


class LlamaCpp:
    """llama.cpp's server around a file, one slot; ``exact`` computes attention in float32, too."""

    def __init__(self, file: Path, threads: int, exact: bool) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_parallel, settings.n_ctx, settings.n_threads_http = 1, 1024, 2
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        if exact:
            # Its defaults: keys and values in float16, and flash attention, which computes in float16 anyway.
            settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.warmup = settings.ui = False
        settings.verbosity = -1
        self.server = xllamacpp.Server(settings)
        self.server.handle_completions({"prompt": [0], "max_tokens": 1})

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
            return json.load(reply)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the faster of two calls, and its result."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        result = work()
        found.append((time.perf_counter() - start, result))
    return min(found, key=lambda one: one[0])


@torch.no_grad()
def gguf(name: str, threads: int) -> None:
    folder = Path(embedded.model_path(name))
    model, tokenizer = load_model(str(folder), torch.float32).eval(), load_tokenizer(str(folder))
    with open_corpus(load("demo")) as corpus:
        texts = [paragraph.text[:200] for paragraph in islice(corpus, PROMPTS)]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "student.gguf"
        start = time.perf_counter()
        told = write_gguf(folder, file, "student")
        print(f"written: {told['bytes'] / 2**20:.0f} MB in {time.perf_counter() - start:.1f} s", flush=True)
        for exact in (True, False):
            server = LlamaCpp(file, threads, exact)
            apart, same = 0.0, 0
            for text in texts:
                ids = tokenizer(text)["input_ids"]
                same += ids == server.post("/tokenize", content=text, add_special=True)["tokens"]
                ours = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                reply = server.post("/completion", prompt=ids, n_predict=1, n_probs=TOP, temperature=0.0)
                for one in reply["completion_probabilities"][0]["top_logprobs"]:
                    apart = max(apart, abs(float(ours[one["id"]]) - one["logprob"]))
            print(
                f"{same} of {len(texts)} texts are the same tokens; log-probabilities of the {TOP} likeliest next ones"
            )
            print(f"differ by at most {apart:.5f} (attention {'in float32' if exact else 'as it comes'})", flush=True)
        ids = tokenizer(texts[0])["input_ids"]
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
        seconds, out = timed(lambda: model.generate(torch.tensor([ids]), **options))
        body = {"prompt": ids, "n_predict": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True}
        theirs, reply = timed(lambda: server.post("/completion", **body))
        print(f"tokens/s of one text: transformers {NEW_TOKENS / seconds:.1f}, llama.cpp {NEW_TOKENS / theirs:.1f}")
        print(f"the same text: {tokenizer.decode(out[0][len(ids) :]) == reply['content']}", flush=True)
        server.server = None


@torch.no_grad()
def cuts() -> None:
    recipe = load("demo")
    with tempfile.TemporaryDirectory() as scratch, open_corpus(recipe) as corpus:
        compose_held_out(recipe, held_out_texts(recipe, corpus), student_tokenizer(recipe), Path(scratch) / "rows")
        rows = TokenRows(Path(scratch) / "rows")
        start = time.perf_counter()
        # The whole text of the part once: the rows repeat it.
        few: Any = _First(rows, -(-rows.meta["unique_tokens"] // rows.meta["row_tokens"]))
        influence = block_influence(load_model(embedded.MODEL_NAME, torch.float32), few)
        print(f"influence, {len(few)} rows of {rows.meta['row_tokens']} in {time.perf_counter() - start:.1f} s:")
        print(" ".join(f"{value:.3f}" for value in influence), flush=True)
        total = len(influence)
        print(f"loss, all {total} layers: {_loss(list(range(total)), few):.2f}", flush=True)
        order = sorted(range(total), key=lambda n: -influence[n])
        for number in (26, 22):
            ways = {
                "by influence": sorted(order[:number]),
                "evenly": [round(n * (total - 1) / (number - 1)) for n in range(number)],
                "all but the last before the last one": [*range(number - 1), total - 1],
                "at random": sorted(
                    torch.randperm(total, generator=torch.Generator().manual_seed(0))[:number].tolist()
                ),
            }
            for name, kept in ways.items():
                print(f"loss, {number} layers {name}: {_loss(kept, few):.2f}", flush=True)


class _First:
    """The first rows of a token file."""

    def __init__(self, rows: TokenRows, number: int) -> None:
        self._rows, self._number, self.meta = rows, number, rows.meta

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


def _loss(kept: list[int], rows: Any) -> float:
    model = load_model(embedded.MODEL_NAME, torch.float32).eval()
    if len(kept) < model.config.num_hidden_layers:
        keep_layers(model, kept)
    total = 0.0
    for number in range(len(rows)):
        ids = torch.from_numpy(rows[number])[None]
        total += float(model(input_ids=ids, labels=ids, use_cache=False).loss)
    return total / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["gguf", "cuts"])
    parser.add_argument("--model", default=embedded.MODEL_NAME, help="of the GGUF file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only in (None, "gguf"):
        gguf(arguments.model, arguments.threads)
    if arguments.only in (None, "cuts"):
        cuts()


if __name__ == "__main__":
    main()
