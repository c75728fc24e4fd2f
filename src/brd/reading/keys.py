"""Keys of readings in little memory: sorted arrays of binaries instead of a set of texts."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
Rows = npt.NDArray[np.int64]
_Keys = npt.NDArray[np.bytes_]


class KeyIndex:
    """Numbers keys in the order in which they are added: 24 bytes of memory for each.

    They lie in a few sorted runs, each more than twice as long as the next, so that adding costs as little as sorting
    them once does and finding takes one binary search a run.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[_Keys, Rows]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, keys: Sequence[str]) -> None:
        new = _packed(keys)
        order = np.argsort(new, kind="stable")
        self._runs.append((new[order], order + self._count))
        self._count += len(new)
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            (a, a_rows), (b, b_rows) = self._runs[-2:]
            keys_of_both, rows_of_both = np.concatenate([a, b]), np.concatenate([a_rows, b_rows])
            # Of two runs that are sorted already the stable sort makes one by merging them.
            order = np.argsort(keys_of_both, kind="stable")
            self._runs[-2:] = [(keys_of_both[order], rows_of_both[order])]

    def rows(self, keys: Sequence[str]) -> Rows:
        """The number of each key, the last one where a key was added twice; -1 for a key that is not there."""
        wanted = _packed(keys)
        found = np.full(len(wanted), -1, dtype=np.int64)
        for run, rows in self._runs:
            if len(run):
                at = np.maximum(np.searchsorted(run, wanted, side="right") - 1, 0)
                found = np.where(run[at] == wanted, rows[at], found)
        return found


def _packed(keys: Sequence[str]) -> _Keys:
    return np.array([_binary(key) for key in keys], dtype=f"S{KEY_BYTES}")


def _binary(key: str) -> bytes:
    """What the 32 hexadecimal digits of a key stand for; of any other text, a hash of the same length."""
    try:
        binary = bytes.fromhex(key)
    except ValueError:
        binary = b""
    return binary if len(binary) == KEY_BYTES else hashlib.blake2b(key.encode(), digest_size=KEY_BYTES).digest()
