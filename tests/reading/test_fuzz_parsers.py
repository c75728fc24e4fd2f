"""The script that fuzzes all parsers, at a size for tests."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_parsers.py"


def test_mutated_answers_do_no_harm() -> None:
    command = [sys.executable, str(SCRIPT), "--answers", "4000", "--giant", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4000 answers" in done.stdout
    assert "relations.en" in done.stdout
    assert "ner.de" in done.stdout
    assert "failures: 0" in done.stdout
