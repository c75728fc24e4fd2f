"""Memory and time of the chunked loss against the logits of all positions (torch's own cross-entropy), side by side.

    python benchmarks/loss.py [--vocabulary 100000] [--tokens 8192] [--width 576] [--repeats 3]

Loss and gradients of the last hidden states and of the output embedding, in float32, each way in a process of its own.
The peak is what the operating system counted above what the process held just before; the ratio is the peak of all
logits over that of chunks. The two losses must agree.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

TARGET = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=("chunked", "logits"), help="measure one way only (called by itself)")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.vocabulary, options.tokens, options.width)))
        return
    ratios = []
    for _ in range(options.repeats):
        found = {}
        for way in ("chunked", "logits"):
            sizes = ["--vocabulary", options.vocabulary, "--tokens", options.tokens, "--width", options.width]
            command = [sys.executable, __file__, "--way", way, *map(str, sizes)]
            found[way] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"{way}: {found[way]['peak_mb']:.0f} MB above its inputs, {found[way]['seconds']:.2f} s")
        if abs(found["chunked"]["loss"] - found["logits"]["loss"]) > 1e-4:
            raise SystemExit(f"the losses differ: {found}")
        ratios.append(found["logits"]["peak_mb"] / found["chunked"]["peak_mb"])
    what = (
        f"peak memory of all logits over that of chunks, loss and gradients at {options.vocabulary} tokens of "
        f"vocabulary and {options.tokens} positions; higher is better"
    )
    figures = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    rounded = {name: round(value, 2) for name, value in figures.items()}
    print(json.dumps({"name": "loss_memory", **rounded, "target": TARGET, "what": what}))


def measure(way: str, vocabulary: int, tokens: int, width: int) -> dict[str, float]:
    import torch

    from brd.run import peak_rss_mb
    from brd.training.loss import chunked_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * 0.02).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    # Whatever torch sets up at its first product is no cost of either way.
    (torch.randn(256, width, requires_grad=True) @ torch.randn(width, 256)).sum().backward()  # type: ignore[no-untyped-call]
    before, start = peak_rss_mb(), time.perf_counter()
    if way == "chunked":
        loss = chunked_cross_entropy(hidden, weight, targets)
    else:
        loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return {"peak_mb": peak_rss_mb() - before, "seconds": time.perf_counter() - start, "loss": float(loss)}


if __name__ == "__main__":
    main()
