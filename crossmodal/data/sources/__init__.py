"""Sources of image–text pairs, one format a file; opened by ``open_source``."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from crossmodal import registry
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
    path, _, query = path.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    cls = registry.find(KIND, name, "Source")
    known = registry.options(cls)
    limit = options.pop("limit", None)
    if limit is not None and not (limit.isdigit() and int(limit) > 0):
        raise UserError(f"{spec}: limit is a number of samples, from 1 on.")
    for key in options:
        if key not in known:
            raise UserError(f"{spec}: the format {name!r} has no option {key!r}; {nearest(key, [*known, 'limit'])}")
    source = cls.open(path, **options)
    if len(source) == 0:
        raise UserError(f"{spec}: holds no samples.")
    return First(source, int(limit)) if limit else source


def _folder(folder: Path) -> str:
    """The format of a folder, by the files that formats say they keep in theirs; else one folder a class."""
    return next((name for pattern, name in registry.declared(KIND, "FOLDERS").items() if any(folder.glob(pattern))), "folder")
