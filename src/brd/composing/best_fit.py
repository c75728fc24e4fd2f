"""Which documents share a row: best-fit decreasing, by lengths alone.

The longest document comes first, and each goes where the least room is left that it fits into (Johnson 1973: at most
11/9 of the rows that are needed). The room left over is a whole number below the row's length, so the tightest room
is found in one integer whose bits say which rooms there are.
"""

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def pieces(starts: Numbers, lengths: Numbers, row_tokens: int) -> tuple[Numbers, Numbers]:
    """Starts and lengths of documents none of which is longer than a row: a longer one becomes full rows from its
    beginning on, and what is left of it one more document."""
    counts = -(-lengths // row_tokens)
    if (counts == 1).all():
        return starts, lengths
    # The number of each piece within its document.
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return (
        np.repeat(starts, counts) + number * row_tokens,
        np.minimum(np.repeat(lengths, counts) - number * row_tokens, row_tokens),
    )


def best_fit(lengths: Numbers, row_tokens: int) -> Numbers:
    """The row of each document; rows are numbered without gaps. A document longer than a row has one of its own."""
    row_of = np.empty(len(lengths), dtype=np.int64)
    found: list[int] = []
    order = np.argsort(-lengths, kind="stable")
    # Rows by the room left in them, and a bit for each room that some row has.
    rooms: dict[int, list[int]] = {}
    there = rows = 0
    for length in lengths[order].tolist():
        enough = there >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            those = rooms[room]
            row = those.pop()
            if not those:
                there ^= 1 << room
            room -= length
        else:
            row, rows, room = rows, rows + 1, max(0, row_tokens - length)
        found.append(row)
        if room:
            those = rooms.setdefault(room, [])
            if not those:
                there |= 1 << room
            those.append(row)
    row_of[order] = found
    return row_of


def spread(lengths: Numbers, row_tokens: int, rows: int) -> Numbers:
    """The row of each document, where they are to stand in ``rows`` rows, as evenly as whole documents can; rows are
    at least as many as ``best_fit`` needs. There are fewer only where there are fewer documents."""
    # The shortest rows that are not too many; longer documents have a row each.
    least, most = 1, row_tokens
    while least < most:
        middle = (least + most) // 2
        if best_fit(lengths, middle).max() < rows:
            most = middle
        else:
            least = middle + 1
    row_of = best_fit(lengths, most)
    # Those few that are still missing get half of another row's documents.
    for new in range(int(row_of.max()) + 1, min(rows, len(lengths))):
        there = np.flatnonzero(row_of == np.bincount(row_of).argmax())
        row_of[there[1::2]] = new
    return row_of
