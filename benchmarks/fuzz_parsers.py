"""Fuzzes the parsers and verifiers of all behaviors in all their languages with mutations of real answers.

    python benchmarks/fuzz_parsers.py --answers 1000000

Answers are cut, repeated, mixed, spiced with odd characters, and now and then made giant (to 50,000 characters). Every
one is parsed, rendered back and judged. Printed are counts, seconds (of this process; other work on the machine does
not count) and the answers that took longest, by their length. Exit code 1 when anything raised, did not come back the
same, or took longer than ``--limit`` seconds.
"""

import argparse
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

from brd.errors import BrdError
from brd.reading.behavior import BEHAVIORS, Behavior, load_behaviors
from brd.reading.languages import known_languages

ODD = [
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\0",
    "\u2028",
    "\x85",
    "\xa0",
    "\u200b",
    "\u202e",
    "\ud800",
    "é",
    "e\u0301",
    "ß",
    "İ",
]
ODD += [
    "名前",
    "🚢",
    "'",
    "’s",
    " (",
    "(",
    ")",
    ": ",
    ":",
    "; ",
    ";",
    ".",
    "?",
    "|",
    " none",
    "None.",
    "Answer:",
    "yes ",
]
ODD += ["Does not follow:", "because", "weil", "person", "1987", "-", "_", "\\", "{", "%s"]
GIANT = 50_000


def loaded() -> dict[str, Behavior]:
    """Every behavior in every language that it has exemplars in."""
    found: dict[str, Behavior] = {}
    for name in BEHAVIORS:
        for code in known_languages():
            try:
                found[f"{name}.{code}"] = load_behaviors([name], languages=[code])[name]
            except BrdError:
                continue
    return found


def shown(behavior: Behavior) -> list[tuple[str, str]]:
    """The sentences of a behavior's exemplars with their answers."""
    blocks = [block.partition("\n") for block in behavior.prefix.strip().split("\n\n")[1:]]
    return [(s.removeprefix("Sentence: "), answer.removeprefix(behavior.cue)) for s, _, answer in blocks]


def mutations(drawn: random.Random, answers: list[str]) -> list[Callable[[str], str]]:
    def spiced(text: str) -> str:
        for _ in range(drawn.randint(1, 6)):
            at = drawn.randint(0, len(text))
            text = text[:at] + drawn.choice(ODD) + text[at:]
        return text

    def cut(text: str) -> str:
        return text[: drawn.randint(0, len(text))]

    def without(text: str) -> str:
        a, b = sorted((drawn.randint(0, len(text)), drawn.randint(0, len(text))))
        return text[:a] + text[b:]

    def repeated(text: str) -> str:
        a, b = sorted((drawn.randint(0, len(text)), drawn.randint(0, len(text))))
        return text[:b] + text[a:b] * drawn.randint(1, 8) + text[b:]

    def mixed(text: str) -> str:
        return cut(text) + drawn.choice(["", " ", "\n", "; "]) + cut(drawn.choice(answers))

    def shuffled(text: str) -> str:
        words = text.split(" ")
        drawn.shuffle(words)
        return " ".join(words)

    def cased(text: str) -> str:
        return drawn.choice([str.upper, str.lower, str.title, str.swapcase])(text)

    return [spiced, cut, without, repeated, mixed, shuffled, cased]


def giant(drawn: random.Random, text: str) -> str:
    piece = (text[drawn.randint(0, len(text)) :] or "x")[: drawn.randint(1, 60)]
    piece = drawn.choice([piece, drawn.choice(ODD), piece + drawn.choice(ODD), drawn.choice(ODD) + piece])
    return (text + piece * (GIANT // len(piece)) + drawn.choice(["", ")", ".", "?", text]))[:GIANT]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--giant", type=float, default=0.001, help="share of giant answers")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds that no answer may take")
    options = parser.parse_args()
    drawn = random.Random(options.seed)
    behaviors = loaded()
    real = {name: shown(behavior) for name, behavior in behaviors.items()}
    answers = [answer for pairs in real.values() for _, answer in pairs]
    changes = mutations(drawn, answers)
    verdicts: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    slowest: dict[str, tuple[float, str, str]] = {}
    spent, started = 0.0, time.perf_counter()
    done = 0
    # Ctrl-C prints what was found so far.
    with contextlib.suppress(KeyboardInterrupt):
        while done < options.answers:
            name = drawn.choice(list(behaviors))
            behavior = behaviors[name]
            # One answer in five is another behavior's.
            sentence, raw = drawn.choice(real[name])
            raw = raw if drawn.random() < 0.8 else drawn.choice(answers)
            for _ in range(drawn.choice([1, 1, 2, 3])):
                raw = drawn.choice(changes)(raw)
            if drawn.random() < options.giant:
                raw = giant(drawn, raw)
            before = time.process_time()
            try:
                content = behavior.parse(raw)
                same = content is None or behavior.parse(behavior.render(content)) == content
                judgement = behavior.judge(raw, sentence)
                verdicts[name, judgement.verdict] += 1
                if not same:
                    failures.append(f"{name}: does not come back the same: {raw[:200]!r}")
                if judgement.verdict == "verified" and judgement.content is not None:
                    again = behavior.judge(behavior.render(judgement.content), sentence)
                    if again.content != judgement.content:
                        failures.append(f"{name}: is not verified when it is rendered: {raw[:200]!r}")
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {error}: {raw[:200]!r}")
            took = time.process_time() - before
            spent += took
            size = "up to 1,000" if len(raw) <= 1000 else "up to 10,000" if len(raw) <= 10_000 else f"up to {GIANT:,}"
            if took > slowest.get(size, (0.0, "", ""))[0]:
                slowest[size] = (took, name, raw)
            done += 1
            if not done % (options.answers // 20 or 1):
                print(f"{done} answers, {spent:.1f} s", file=sys.stderr, flush=True)

    print(f"{done} answers (seed {options.seed}): {spent:.1f} s of parsing, rendering and judging, ", end="")
    print(f"{1e6 * spent / max(done, 1):.0f} microseconds each; {time.perf_counter() - started:.0f} s by the clock")
    for name in behaviors:
        counts = {verdict: verdicts[name, verdict] for verdict in ("verified", "rejected", "malformed")}
        print(f"  {name:<16}" + "  ".join(f"{verdict} {n}" for verdict, n in counts.items()))
    for size, (took, name, raw) in sorted(slowest.items()):
        print(f"slowest of {size} characters: {1000 * took:.1f} ms ({name}, {len(raw)} characters): {raw[:100]!r}")
    print(f"failures: {len(failures)}")
    for failure in failures[:10]:
        print(f"  {failure}")
    too_slow = max((took for took, _, _ in slowest.values()), default=0) > options.limit
    return 1 if failures or too_slow else 0


if __name__ == "__main__":
    sys.exit(main())
