"""What a tar holds and where: names, offsets and sizes of its files, a million in seconds."""

from __future__ import annotations

import mmap
import tarfile
from collections.abc import Iterator
from pathlib import Path

from crossmodal.errors import UserError

BLOCK = tarfile.BLOCKSIZE
PLAIN = (b"0", b"\0")  # a header's type of a regular file
OTHER = (b"1", b"2", b"3", b"4", b"5", b"6", b"7")  # links, devices, folders: a link could point out of the tar


def members(tar: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every regular file in a tar, in its order; links and devices are passed over.

    Errors: ``UserError`` for a tar that is not whole.
    """
    found = 0
    try:
        size = tar.stat().st_size
        for name, offset, length in _quick(tar, size):
            if offset + length > size:
                raise tarfile.ReadError(f"{name!r} is cut off")
            yield name, offset, length
            found += 1
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{tar}: not a whole tar file ({error}) after {found:,} files; copy or download it again.") from error


def _quick(tar: Path, size: int) -> Iterator[tuple[str, int, int]]:
    """Header after header. Where a tar has extended headers (names over 100 characters and the like), tarfile reads on from there."""
    if size < BLOCK:
        raise tarfile.ReadError("it is empty" if not size else "its end is missing")
    with tar.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        while True:
            header = data[at : at + BLOCK]
            if len(header) < BLOCK:
                raise tarfile.ReadError("its end is missing")
            if header.count(0) == BLOCK:
                if any(data[at:]):
                    raise tarfile.ReadError("something stands behind its end; tars are not joined by appending one to another")
                break
            kind = header[156:157]
            if (kind not in PLAIN and kind not in OTHER) or header[124] & 0x80:
                yield from _slowly(tar, at)
                break
            if sum(header) - sum(header[148:156]) + 256 != int(header[148:156].split(b"\0")[0].strip() or b"0", 8):
                raise tarfile.ReadError("bad checksum" if at else "it does not begin as one")
            length = int(header[124:136].split(b"\0")[0].strip() or b"0", 8)
            if kind in PLAIN:
                name = header[:100].split(b"\0", 1)[0]
                prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[262:263] != b" " else b""
                yield (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape"), at + BLOCK, length
            at += BLOCK + (-(-length // BLOCK) * BLOCK if kind in PLAIN else 0)
        if any(data[max(0, size - BLOCK) :]):  # a tar ends in blocks of zeros
            raise tarfile.ReadError("its end is missing")


def _slowly(tar: Path, at: int) -> Iterator[tuple[str, int, int]]:
    with tar.open("rb") as raw:
        raw.seek(at)
        with tarfile.open(fileobj=raw, mode="r:") as rest:
            for member in rest:
                if member.isfile():
                    yield member.name, member.offset_data, member.size
