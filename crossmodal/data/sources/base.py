"""What a source is: pictures with captions or classes, by index.

One format a file. A spec is ``FORMAT:PATH``, or a path whose ending says the format; options follow
a question mark: ``csv:pairs.csv?image=file&caption=text``.
"""

from __future__ import annotations

from crossmodal.batch import Sample


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
