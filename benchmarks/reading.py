"""Readings a second: the shared-prefix teacher against llama.cpp, on the same weights, prompts and stop rules.

    python benchmarks/reading.py [--rounds 3] [--sentences 256] [--batch-size 128]

Both read the NER prompt over our own passages, greedy, the prefill of the sentences included; the prefix is warm in
all of llama.cpp's slots before its time is taken, and the shared-prefix teacher computes it anew in each round. The
order of the two alternates. Printed beside it: the fastest form that the file can be requantised to (Q8_0, Q4_0) in
llama.cpp, one-by-one ``generate()`` with the whole prompt, and the share of the processor's measured matrix-product
rate that is reached (which is measured every two seconds while the readings are made, since it drifts), counting two
operations a weight and token: all linear layers for every token that is run, the LM head for every token that is
decoded, and attention to the prefix.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from brd import hardware
from brd.embedded import smollm2_gguf
from brd.reading.behavior import Behavior, load_behaviors
from brd.sections.teacher import Teacher as Settings
from brd.sections.text import Text
from brd.teachers import llamacpp, shared_prefix
from brd.teachers.teacher import Teacher
from brd.text.sentences import split
from brd.text.sources import paragraphs


def sentences(count: int) -> list[str]:
    """Sentences from all of our passages, evenly drawn."""
    found = [p.text[s.start : s.end] for p in paragraphs(Text()) for s in split(p.text, "en")]
    step = max(1, len(found) // count)
    return found[::step][:count]


def timed(
    teacher: Teacher, behavior: Behavior, texts: list[str], between: Callable[[], None] | None = None
) -> tuple[float, int]:
    """Seconds and generated tokens for reading all sentences; every two seconds ``between``, off the clock."""
    suffixes = [behavior.suffix(text) for text in texts]
    seconds, tokens, start = 0.0, 0, time.perf_counter()
    for _, answer in teacher.answer(
        behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=behavior.max_new_tokens
    ):
        tokens += answer.new_tokens
        if between and time.perf_counter() - start > 2:
            seconds += time.perf_counter() - start
            between()
            start = time.perf_counter()
    return seconds + time.perf_counter() - start, tokens


def one_by_one(teacher: shared_prefix.SharedPrefix, behavior: Behavior, texts: list[str]) -> float:
    """Readings a second of plain ``generate()`` with the whole prompt, one sentence at a time."""
    model, tokenizer = teacher.model, teacher.tokenizer
    start = time.perf_counter()
    for text in texts:
        ids = tokenizer(behavior.prefix + behavior.suffix(text), return_tensors="pt").to(model.device)
        model.generate(
            **ids,
            max_new_tokens=behavior.max_new_tokens,
            do_sample=False,
            stop_strings=list(behavior.stop),
            tokenizer=tokenizer,
        )
    return len(texts) / (time.perf_counter() - start)


def operations(teacher: shared_prefix.SharedPrefix, prefix_tokens: int) -> float:
    """Operations of all steps since the teacher's counts were last set to zero."""
    model, stats = teacher.model, teacher.stats
    head = model.get_output_embeddings().weight.numel()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    )
    config = model.config
    attention = 2 * config.num_hidden_layers * config.hidden_size * prefix_tokens
    run = stats.read + stats.decoded
    return float(2 * (run * (linear + attention) + stats.decoded * head))


def requantised(source: Path, kind: str, folder: Path) -> Path:
    """The GGUF file with its weight matrices in another quantisation; what is not quantised stays as it is."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

    reader = GGUFReader(source)
    target = folder / f"{kind}.gguf"
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    wanted = GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            plain = quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quants.quantize(plain, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def llama_rate(file: Path, behavior: Behavior, texts: list[str]) -> Callable[[], tuple[float, int]]:
    teacher = llamacpp.LlamaCpp(file, slots=32)
    timed(teacher, behavior, texts[:64])
    return lambda: timed(teacher, behavior, texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="auto", choices=("auto", *hardware.DTYPES))
    options = parser.parse_args()
    texts, behavior = sentences(options.sentences), load_behaviors(["ner"])["ner"]
    bf16 = hardware.matmul_rate(torch.bfloat16) > 1.2 * hardware.matmul_rate(torch.float32)
    ours = shared_prefix.load(Settings(batch_size=options.batch_size, dtype=options.dtype))
    dtype = ours.identity()["dtype"]
    rates: list[float] = []

    def between() -> None:
        rates.append(hardware.matmul_rate(hardware.DTYPES[dtype], seconds=0.1))

    print(f"{len(texts)} sentences, prefix of {ours.count_tokens(behavior.prefix)} tokens; shared_prefix in {dtype}")

    llama = llama_rate(smollm2_gguf(), behavior, texts)
    timed(ours, behavior, texts[:64])
    ratios = []
    for number in range(options.rounds):
        ours.stats = shared_prefix.Stats()
        rates.clear()
        runs = {"ours": lambda: timed(ours, behavior, texts, between), "llama": llama}
        found = {name: runs[name]() for name in (("ours", "llama") if number % 2 == 0 else ("llama", "ours"))}
        (seconds, tokens), (llama_seconds, llama_tokens) = found["ours"], found["llama"]
        rate = statistics.median(rates)
        share = operations(ours, ours.count_tokens(behavior.prefix)) / seconds / rate
        ratios.append(llama_seconds / seconds)
        print(
            f"round {number + 1}: shared_prefix {len(texts) / seconds:.1f} readings/s ({tokens / seconds:.0f} tokens/s "
            f"generated, {ours.stats.useful / ours.stats.decoded:.0%} of decoded tokens useful, {share:.0%} of "
            f"{rate / 1e9:.0f} GFLOP/s); llama.cpp as shipped (Q4_1) {len(texts) / llama_seconds:.1f} readings/s "
            f"({llama_tokens / llama_seconds:.0f} tokens/s); ratio {ratios[-1]:.2f}",
            flush=True,
        )
    del llama
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("Q8_0", "Q4_0"):
            seconds, tokens = llama_rate(requantised(smollm2_gguf(), kind, Path(folder)), behavior, texts)()
            print(f"llama.cpp requantised to {kind}: {len(texts) / seconds:.1f} readings/s", flush=True)
    print(f"generate(), one by one: {one_by_one(ours, behavior, texts[:8]):.2f} readings/s (8 sentences)")
    kind = "fast bf16" if bf16 else "no fast bf16"
    print(
        json.dumps(
            {
                "name": "reading",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "target": 2.5 if bf16 else 1.6,
                "what": f"readings/s, shared_prefix ({dtype}) over llama.cpp, 32 warm slots (Q4_1 as shipped), {kind}",
            }
        )
    )


if __name__ == "__main__":
    main()
