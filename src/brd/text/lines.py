"""Files, compressed or not, to lines of text; and what tells that a file has changed.

Nothing is held in memory but a piece of the file and the line in hand; so a giant line takes its own size, a few times
over. A file's line breaks are ``\\n`` and ``\\r\\n`` only: a form feed or U+2028 is part of its line. Only the line
break is taken off. A byte order mark at the start of a file is dropped.
"""

import codecs
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import zstandard

from brd.errors import BrdError

COMPRESSIONS = (".gz", ".xz", ".zst")
# Files up to this size are fingerprinted by all of their content, larger ones by their ends, size and time.
WHOLE = 64 * 2**20
CHUNK = 2**20
# What is unpacked at once: smaller, for it may grow many times.
PACKED_CHUNK = 2**16
# The largest window that zstd can write (`zstd --ultra --long=31`); memory is taken only for such files.
ZSTD_WINDOW = 2**31
REPLACE_HINT = "set text.encoding_errors: replace"


def content_hash(path: Path) -> str:
    """A hash of the content; of a file beyond 64 MiB of its ends, size and time. Raises BrdError."""
    try:
        stat = path.stat()
        with path.open("rb") as file:
            if stat.st_size <= WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
            digest.update(file.read(2**20))
            file.seek(-(2**20), 2)
            digest.update(file.read())
            return digest.hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def lines(path: Path, errors: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; ``errors`` is strict or replace. Raises BrdError with file and line."""
    number = 0

    def decoded(raw: bytes) -> str:
        try:
            return raw.removesuffix(b"\r").decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise BrdError(
                f"{path}:{number}: not UTF-8 text (byte {error.start + 1} of the line); convert the file, or "
                f"{REPLACE_HINT}"
            ) from None

    # The pieces of a line that has not ended yet: joined once, or a giant line would be copied with every piece.
    begun: list[bytes] = []

    def joined(*last: bytes) -> bytes:
        line = b"".join([*begun, *last])
        begun.clear()
        return line if number else line.removeprefix(codecs.BOM_UTF8)

    for chunk in chunks(path):
        *ended, rest = chunk.split(b"\n")
        if ended:
            ended[0] = joined(ended[0])
        for raw in ended:
            number += 1
            yield number, decoded(raw)
        begun.append(rest)
    if raw := joined():
        number += 1
        yield number, decoded(raw)


def chunks(path: Path) -> Iterator[bytes]:
    """The decompressed content in pieces; concatenated members are read to the end."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as raw:
            if suffix in COMPRESSIONS and not path.stat().st_size:
                raise EOFError
            match suffix:
                case ".gz":
                    with gzip.open(raw) as file:
                        yield from iter(partial(file.read, CHUNK), b"")
                case ".xz":
                    # Not lzma.open: it takes a damaged or padded later member for the end of the file.
                    yield from _members(raw, lzma.LZMADecompressor, padding=b"\0")
                case ".zst":
                    zstd = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
                    yield from _members(raw, zstd.decompressobj)
                case _:
                    yield from iter(partial(raw.read, CHUNK), b"")
    except EOFError:
        raise BrdError(f"{path}: ends too early; the file is truncated (fetch or compress it again)") from None
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise BrdError(f"{path}: damaged, or not what its suffix says ({error})") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> BrdError:
    return BrdError(f"{path}: cannot be read ({error.strerror or error})")


def _members(raw: IO[bytes], start: Callable[[], Any], padding: bytes = b"") -> Iterator[bytes]:
    """The content of all members of an xz or zstd file; raises EOFError when the last has no end."""
    member: Any = None
    while chunk := raw.read(PACKED_CHUNK):
        while chunk:
            if member is None:
                if not (chunk := chunk.lstrip(padding)):
                    break
                member = start()
            yield member.decompress(chunk)
            chunk, member = (member.unused_data, None) if member.eof else (b"", member)
    if member is not None:
        raise EOFError
