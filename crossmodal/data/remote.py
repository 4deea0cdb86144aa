"""Files that stand elsewhere: at http addresses, in buckets, on a hub.

http and https go through urllib, all other schemes (``s3://``, ``gs://``, ``hf://`` …) through fsspec and the library that it
names for them. (fsspec's own http is asynchronous and may hang in forked workers.)
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from crossmodal import files, resources
from crossmodal.errors import UserError, first_line

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
PATIENCE = 20  # seconds without a byte until an address is given up
TRIES = 3
AGAIN = 60.0  # seconds that an address stays given up
#: What the libraries of buckets call a file's tag, date and length.
TOLD = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created", "size")
DISK = 50  # GB of fetched files that are kept, unless $CROSSMODAL_CACHE_GB says otherwise


def is_remote(reference: object) -> bool:
    """Whether this is an address, not a path."""
    return isinstance(reference, str) and bool(SCHEME.match(reference))


def read(address: str, largest: int) -> bytes:
    """The whole file. Errors: ``OSError``, also for more than ``largest`` bytes."""
    with _opened(address) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(f"{address}: is larger than {largest:,} bytes")
    return data


def tail(address: str, size: int) -> bytes:
    """The last ``size`` bytes, or all where there are fewer. Errors: ``OSError``."""
    if not is_remote(address):
        file = Path(address)
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - size))
            return opened.read()
    with _opened(address, last=size) as file:
        return file.read()[-size:]


def stamp(address: str) -> str | None:
    """A file's tag, date and length, as a web server or bucket tells them without sending it; None where it does not."""
    try:
        if urlsplit(address).scheme.lower() in ("http", "https"):
            with urlopen(Request(address, headers={"User-Agent": "crossmodal"}, method="HEAD"), timeout=PATIENCE) as answer:
                told, names = answer.headers, ("ETag", "Last-Modified", "Content-Length")
        else:
            import fsspec

            system, path = fsspec.url_to_fs(address)
            told, names = system.info(path), TOLD
    except Exception:  # the libraries of buckets raise classes of their own; whoever reads the file will be told
        return None
    return " ".join(str(told[name]) for name in names if told.get(name)) or None


def listed(pattern: str) -> list[str]:
    """The addresses that a pattern with ``*`` stands for, sorted. Errors: ``OSError``."""
    with _reported(pattern):
        import fsspec

        system, path = fsspec.url_to_fs(pattern)
        return sorted(system.unstrip_protocol(found) for found in system.glob(path))


def copy(address: str, target: Path) -> None:
    """The whole file, to ``target``, atomically; tried anew where the connection breaks. Errors: ``OSError``."""
    for attempt in range(TRIES):
        try:
            with files.whole_file(target) as temporary, _opened(address) as file, temporary.open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
                promised = getattr(file, "length", None)  # what http's answer still owes
                if promised:
                    raise ConnectionError(f"{address}: broke off, {promised:,} bytes before its end")
            return
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == TRIES - 1:
                raise
            time.sleep(1 + 2 * attempt)


@contextmanager
def _opened(address: str, last: int | None = None) -> Iterator[BinaryIO]:
    with _reported(address):
        if urlsplit(address).scheme.lower() in ("http", "https"):
            headers = {"User-Agent": "crossmodal"} | ({"Range": f"bytes=-{last}"} if last else {})
            with urlopen(Request(address, headers=headers), timeout=PATIENCE) as answer:
                yield answer
        else:
            import fsspec

            system, path = fsspec.url_to_fs(address)
            if last:
                yield io.BytesIO(system.tail(path, last))
            else:
                with system.open(path, "rb") as file:
                    yield file


@contextmanager
def _reported(address: str) -> Iterator[None]:
    """Whatever a library raises for an address becomes ``OSError`` with the address; ``FileNotFoundError`` where there is no such file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{address}: no such file") from error
    except HTTPError as error:
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        raise kind(f"{address}: {error}") from error
    except ImportError as error:
        raise UserError(f"{address}: {str(error).splitlines()[0]}") from error
    except ConnectionError as error:
        raise error if address in str(error) else OSError(f"{address}: {error}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"{address}: {first_line(error)}") from error
    except Exception as error:  # the libraries of buckets raise classes of their own
        raise OSError(f"{address}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error


class Kept:
    """Fetched files under ``cache/shards``: each address in a folder of its own, the longest unused let go when the disk's share is full.

    Processes on one machine share them: one fetches, the others wait for it.
    """

    def __init__(self) -> None:
        self.root = resources.cache() / "shards"
        self.largest = _share() * 10**9
        self._given_up: dict[str, tuple[float, OSError]] = {}
        self._ahead: threading.Thread | None = None

    def _folder(self, address: str) -> Path:
        return self.root / hashlib.blake2b(address.encode(), digest_size=12).hexdigest()

    def place(self, address: str) -> Path:
        """Where the file stands, or will."""
        return self._folder(address) / (re.sub(r"[^\w.-]", "_", Path(urlsplit(address).path).name) or "file")

    def note(self, address: str, kind: str) -> Path:
        """A small file about an address as a format reads it, which stays when the file goes."""
        return self._folder(address).with_suffix(f".{kind}.json")

    def forget(self, address: str) -> None:
        """Let a fetched file go, and what was noted about it."""
        shutil.rmtree(self._folder(address), ignore_errors=True)
        for note in self.root.glob(f"{self._folder(address).name}.*.json"):
            note.unlink(missing_ok=True)

    @staticmethod
    def stamps(addresses: list[str]) -> dict[str, str | None]:
        """What tells an address's file from an older one; None where that cannot be had (no answer, or not over http)."""
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(addresses, pool.map(stamp, addresses), strict=True))

    def path(self, address: str, wait: bool = True) -> Path:
        """The file on this disk, fetched if need be; without ``wait`` only if nobody is about it already. Errors: ``OSError``."""
        from filelock import FileLock, Timeout

        target = self.place(address)
        when, error = self._given_up.get(address, (-AGAIN, None))
        if error and time.monotonic() - when < AGAIN:
            raise error
        if not target.is_file():
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(self._folder(address).with_suffix(".lock"), timeout=-1 if wait else 0):
                    if not target.is_file():
                        copy(address, target)
                        self._make_room(target.parent)
            except Timeout:
                return target
            except OSError as error:
                self._given_up[address] = (time.monotonic(), error)
                raise
        os.utime(target.parent)
        return target

    def ahead(self, address: str) -> None:
        """Begin to fetch a file that will be wanted soon, one at a time, beside everything else."""
        if (self._ahead is None or not self._ahead.is_alive()) and address not in self._given_up and not self.place(address).is_file():
            self._ahead = threading.Thread(target=self._try, args=(address,), daemon=True)
            self._ahead.start()

    def _try(self, address: str) -> None:
        with suppress(OSError, UserError):  # whoever wants the file will be told
            self.path(address, wait=False)

    def _make_room(self, mine: Path) -> None:
        used = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in self._folders()}
        for folder in sorted(used, key=lambda folder: folder.stat().st_mtime):
            if sum(used.values()) <= self.largest:
                break
            if folder != mine:
                shutil.rmtree(folder, ignore_errors=True)  # whoever has it open reads on
                del used[folder]

    def _folders(self) -> list[Path]:
        return [each for each in self.root.iterdir() if each.is_dir()]


def _share() -> float:
    said = os.environ.get("CROSSMODAL_CACHE_GB", str(DISK))
    try:
        return float(said)
    except ValueError:
        raise UserError(f"$CROSSMODAL_CACHE_GB is {said!r}; say how many gigabytes of fetched files may stay, such as {DISK}.") from None
