"""What a source is: pictures with captions or classes, by index.

One format a file. A spec is ``FORMAT:PATH``, or a path whose ending says the format; options follow
a question mark: ``csv:pairs.csv?image=file&caption=text``.
"""

from __future__ import annotations

from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data import pictures
from crossmodal.errors import UserError


class Source:
    """Indexable samples. Subclasses take the path first and options as keyword-only strings."""

    #: The names of each class (the first is the one shown), or None where there are no classes.
    classes: list[tuple[str, ...]] | None = None
    #: Class prompts that the data set brings along, or None.
    templates: list[str] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``, its picture still encoded. May raise ``OSError`` for an unreadable file."""
        raise NotImplementedError

    def identity(self, index: int) -> Sample:
        """What names the sample at ``index`` in a fingerprint: itself, or whatever is cheaper to have and differs when it does."""
        return self[index]


class Listed(Source):
    """Pictures that a file lists, with their captions."""

    #: The folder that the pictures' paths are relative to.
    root: Path
    #: For every sample its key, its picture (a path below ``root`` or an http address) and its captions.
    samples: list[tuple[str, str, tuple[str, ...]]]

    def list_at(self, path: str, images: str | None) -> Path:
        """The list's file; the pictures stand in the folder ``images``, or beside it. Errors: ``UserError`` where there is no file."""
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"{path}: no such file.")
        self.root = Path(images).expanduser() if images else file.parent
        return file

    def check_first(self, who: str) -> None:
        """Tell a wrong folder at once, not after an epoch of warnings. Errors: ``UserError``."""
        pictures.check_first(self.samples[0][1] if self.samples else None, self.root, who)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        key, picture, captions = self.samples[index]
        return Sample(key, pictures.read(picture, self.root), captions)


class First(Source):
    """The first ``limit`` samples of another source."""

    def __init__(self, source: Source, limit: int):
        self.source, self.limit = source, limit
        self.classes, self.templates = source.classes, source.templates

    def __len__(self) -> int:
        return min(self.limit, len(self.source))

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    def identity(self, index: int) -> Sample:
        return self.source.identity(index)
