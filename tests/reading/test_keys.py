import hashlib
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from brd.reading.keys import KeyIndex

# Keys as they are, such as sort close together, and texts that are no keys.
KEYS = st.one_of(
    st.integers(0, 40).map(lambda n: hashlib.sha256(str(n).encode()).hexdigest()[:32]),
    st.integers(0, 40).map(lambda n: f"{n << 120:032x}"),
    st.sampled_from(["", "k1", "k2", "of another", "ab", "ü" * 32]),
)


@settings(deadline=None)
@given(added=st.lists(st.lists(KEYS, max_size=12), max_size=12), asked=st.lists(KEYS, max_size=20))
def test_an_index_finds_what_a_dictionary_does(added: list[list[str]], asked: Sequence[str]) -> None:
    index, plain = KeyIndex(), dict[str, int]()
    for keys in added:
        plain.update({key: len(index) + n for n, key in enumerate(keys)})
        index.add(keys)
        assert index.rows(asked).tolist() == [plain.get(key, -1) for key in asked]
    assert len(index) == sum(map(len, added))


def test_runs_are_few_and_a_key_takes_24_bytes() -> None:
    index = KeyIndex()
    keys = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(20_000)]
    for n in range(0, len(keys), 100):
        index.add(keys[n : n + 100])
        assert len(index._runs) <= 9
    assert sum(k.nbytes + rows.nbytes for k, rows in index._runs) == 24 * len(keys)
    assert index.rows(keys).tolist() == list(range(len(keys)))
