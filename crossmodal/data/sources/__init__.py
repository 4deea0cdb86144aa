"""Sources of image–text pairs, one format a file; opened by ``open_source``."""

from __future__ import annotations

import glob
import itertools
import sys
from pathlib import Path
from urllib.parse import parse_qsl

from crossmodal import distributed, registry
from crossmodal.data.remote import is_remote
from crossmodal.data.sources.base import First, Source
from crossmodal.errors import UserError, nearest

KIND = "data.sources"


def open_source(spec: str) -> Source:
    """``csv:FILE``, ``folder:DIR``, ``wds:SHARDS`` (or a path with a known ending, or a folder) → a source.

    Every format takes ``?limit=N``: the first N samples.

    Errors: ``UserError`` naming the file and what is wrong with it.
    """
    formats = {*registry.names(KIND), *registry.declared(KIND, "ALIASES")}
    head, colon, rest = spec.partition(":")
    if colon and head in formats:
        name, path = head, rest
    elif colon and head.isalpha() and len(head) > 1 and not Path(spec).exists() and not rest.startswith("//"):
        raise UserError(f"{spec}: there is no data format {head!r}; {nearest(head, formats)}")
    else:
        path = spec
        endings = registry.declared(KIND, "ENDINGS")
        file = Path(spec.partition("?")[0]).expanduser()
        name = _folder(file) if file.is_dir() else endings.get(Path(file.name.rstrip("}")).suffix.lower())
        if name is None:
            raise UserError(f"{spec}: no such folder, and its ending says no format; write FORMAT:PATH ({', '.join(sorted(formats))}).")
    cls = registry.find(KIND, name, "Source")
    known = registry.options(cls)
    path, _, query = path.partition("?") if not cls.takes_queries else (path, "", "")
    if not path:
        raise UserError(f"{spec}: names no file; write FORMAT:PATH.")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if is_remote(path):  # what is no option of ours belongs to the address
        own = "&".join(part for part in query.split("&") if part and part.partition("=")[0] not in {*known, "limit"})
        path, options = f"{path}?{own}" if own else path, {k: v for k, v in options.items() if k in {*known, "limit"}}
    limit = options.pop("limit", None)
    if limit is not None and not (limit.isdecimal() and int(limit) > 0):
        raise UserError(f"{spec}: limit is a number of samples, from 1 on.")
    for key in options:
        if key not in known:
            raise UserError(f"{spec}: the format {name!r} has no option {key!r}; {nearest(key, [*known, 'limit'])}")
    source = cls.open(path, **options)
    if len(source) == 0:
        why = f" ({_passed_over(source)})" if source.left_out else ""
        raise UserError(f"{spec}: holds no samples{why}.")
    if source.left_out and distributed.is_main():
        print(f"crossmodal: {spec}: passed over {_passed_over(source)}.", file=sys.stderr)
    return First(source, int(limit)) if limit else source


def _passed_over(source: Source) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in source.left_out.items())


def _folder(folder: Path) -> str:
    """The format of a folder, by the files that formats say they keep in theirs; else one folder a class. Errors: ``UserError``."""
    kept = registry.declared(KIND, "FOLDERS")
    here = next((name for pattern, name in kept.items() if any(folder.glob(pattern))), None)
    if here:
        return here
    for ending, name in registry.declared(KIND, "BESIDE").items():  # a.jpg with a.txt, here or a folder deeper
        texts = itertools.islice(itertools.chain(folder.glob(f"*{ending}"), folder.glob(f"*/*{ending}")), 1000)
        if any(other != text for text in texts for other in text.parent.glob(f"{glob.escape(text.stem)}.*")):
            return name
    deeper = next((found for pattern in kept for found in folder.glob(f"*/{pattern}")), None)
    if deeper:
        raise UserError(f"{folder}: has {deeper.name} in a folder of it; name that one: {deeper.parent}.")
    return "folder"
