"""Paragraphs that share most of their runs of words with an earlier one: MinHash and LSH of datasketch."""

from typing import Annotated, Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from brd.sections.section import Positive, Section
from brd.text.filters.filter import Context, Decision, missing
from brd.text.ngrams import MULTIPLIER, words_of
from brd.text.paragraph import Paragraph


class Settings(Section):
    """``threshold``: the share of common runs of ``ngram`` words (Jaccard), estimated from ``permutations`` hashes.

    Paragraphs of fewer than ``min_words`` (or ``ngram``) words are not compared: a line of a dialogue may come again.
    """

    threshold: Annotated[float, Field(ge=0.3, lt=1)] = 0.8
    ngram: Annotated[int, Field(ge=1, le=50)] = 5
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128
    min_words: Positive = 20


class NearDuplicates:
    """Keeps the first of paragraphs that are nearly equal (Broder 1997).

    LSH proposes earlier paragraphs, and the share of equal hashes decides: its standard error at 0.8 is 0.035 with 128
    permutations. Memory grows with each paragraph kept, see docs/corpora.md.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise missing("near_duplicates", "datasketch") from None
        self._settings = settings
        self._blank: Any = MinHash(num_perm=settings.permutations, seed=1, hashfunc=int)
        self._index: Any = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations, hashfunc=_short)
        self._kept: list[tuple[str, int, npt.NDArray[np.uint32]]] = []

    def judge(self, paragraph: Paragraph) -> Decision | None:
        words = words_of(paragraph.text)
        if len(words) < max(self._settings.min_words, self._settings.ngram):
            return None
        minhash = self._blank.copy()
        minhash.update_batch(shingles(words, self._settings.ngram).tolist())
        best, first = 0.0, -1
        for number in sorted(self._index.query(minhash)):
            share = float(np.mean(self._kept[number][2] == minhash.hashvalues))
            if share > best:
                best, first = share, number
        if best >= self._settings.threshold:
            document, index, _ = self._kept[first]
            return Decision(f"{best:.2f} as {document}/{index}")
        self._index.insert(len(self._kept), minhash, check_duplication=False)
        self._kept.append((paragraph.document, paragraph.index, minhash.hashvalues))
        return None


def shingles(words: list[str], n: int) -> npt.NDArray[np.uint64]:
    """32-bit hashes of the distinct runs of ``n`` words (at least one)."""
    hashes = np.fromiter((crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words))
    powers = np.cumprod(np.full(n, MULTIPLIER), dtype=np.uint64)
    return np.unique((sliding_window_view(hashes, n) * powers).sum(axis=1, dtype=np.uint64) >> np.uint64(32))


def _short(band: bytes) -> bytes:
    """A band of hashes in 8 bytes: they are kept for each paragraph and band."""
    from hashlib import blake2b

    return blake2b(band, digest_size=8).digest()
