"""Data sets of the datasets library: ``hf:ID`` from a hub, ``hf:FOLDER`` as ``save_to_disk`` wrote it.

``hf:ID?streaming=true`` downloads none of it first: its parquet or tar files are fetched one by one as their turn comes.
Options: ``split``, ``name`` (the configuration), and the columns ``image``, ``caption`` and ``label``. A picture is the library's Image
(bytes or a path), bytes, a path or an http address; a caption is a text or a list of texts. Rows stay on the disk, mapped into memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from crossmodal import registry
from crossmodal.batch import Sample
from crossmodal.data import pictures
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError, nearest

FOLDERS = ("state.json", "dataset_dict.json")
IMAGES = ("image", "jpg", "png", "img", "filepath", "file_name", "image_path", "url")
CAPTIONS = ("caption", "captions", "text", "texts", "title", "sentences")


class HubSource(Source):
    """A data set with random access. Columns are found by their usual names, or named by options."""

    def __init__(
        self,
        path: str,
        *,
        split: str | None = None,
        name: str | None = None,
        image: str | None = None,
        caption: str | None = None,
        label: str = "label",
    ):
        from datasets import load_dataset, load_from_disk

        quiet_without_a_terminal()
        folder = Path(path).expanduser()
        try:
            if folder.is_dir() and any((folder / each).is_file() for each in FOLDERS):
                found, self.root = load_from_disk(folder), folder
            else:
                found, self.root = load_dataset(path, name, split=split), Path()
        except UserError:
            raise
        except Exception as error:  # the library raises what its file formats and the network raise
            raise UserError(f"hf:{path}: cannot be opened: {str(error).splitlines()[0]}") from error
        if isinstance(found, dict):
            if split not in found and len(found) > 1:
                raise UserError(f"hf:{path}: say which split: {', '.join(found)} (hf:{path}?split=…).")
            found = found[split] if split in found else next(iter(found.values()))
        self._take(found, path, image, caption, label)

    @classmethod
    def open(cls, path: str, *, streaming: str = "false", **options: str) -> Source:
        if streaming.lower() not in ("false", "true"):
            raise UserError(f"hf:{path}: streaming is {streaming!r}; say true or false.")
        return _stream(path, **options) if streaming.lower() == "true" else cls(path, **options)

    def _take(self, dataset, path: str, image: str | None, caption: str | None, label: str) -> None:
        from datasets import Image

        columns = dataset.column_names
        self.image = _column(columns, image, IMAGES, path, "image")
        self.caption = _column(columns, caption, CAPTIONS, path, "caption", needed=label not in columns)
        if label not in columns and label != "label":
            _column(columns, label, (), path, "label")
        self.label = label if label in columns else None
        names = getattr(dataset.features.get(label), "names", None)
        self.classes = [(n.replace("_", " "),) for n in names] if names else None
        if isinstance(dataset.features[self.image], Image):
            dataset = dataset.cast_column(self.image, Image(decode=False))
        self.dataset = dataset.select_columns([c for c in (self.image, self.caption, self.label) if c])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        row = self.dataset[index]
        picture, key = row[self.image], str(index)
        if isinstance(picture, dict):
            key = picture.get("path") or key
            picture = picture["bytes"] if picture.get("bytes") is not None else picture["path"]
        if isinstance(picture, str):
            key, picture = picture, pictures.read(picture, self.root)
        said = row.get(self.caption)
        captions = [c.strip() for c in (said if isinstance(said, list) else [said]) if isinstance(c, str) and c.strip()]
        label = row.get(self.label)
        if self.classes and not captions and isinstance(label, int) and 0 <= label < len(self.classes):
            captions = list(self.classes[label])
        return Sample(
            Path(key).name if "/" in key and "://" not in key else key,
            picture or b"",
            tuple(captions),
            tuple(label) if isinstance(label, list) else label,
        )


def _stream(path: str, split: str | None = None, name: str | None = None, **options: str) -> Source:
    """The files behind a data set, by the format that they are in."""
    from datasets import load_dataset_builder

    try:
        files = load_dataset_builder(path, name).config.data_files or {}
    except Exception as error:  # the library raises what its file formats and the network raise
        raise UserError(f"hf:{path}: cannot be opened: {str(error).splitlines()[0]}") from error
    split = split or ("train" if "train" in files else next(iter(files), None))
    if split not in files:
        raise UserError(f"hf:{path}: has no split {split!r} (its splits: {', '.join(map(str, files)) or 'none'}).")
    ending = Path(files[split][0]).suffix.lower()
    known = registry.declared("data.sources", "ENDINGS")
    source = registry.find("data.sources", known[ending], "Source") if ending in known else None
    if not hasattr(source, "in_turn"):
        raise UserError(
            f"hf:{path}: its files end in {ending or 'nothing'}, and only parquet and tar can be streamed; leave streaming out."
        )
    return source.in_turn(path, list(files[split]), **options)


def quiet_without_a_terminal() -> None:
    """The library draws its progress bars into logs as well, unless told."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _column(columns: list[str], said: str | None, usual: tuple[str, ...], path: str, option: str, needed: bool = True) -> str | None:
    if said is not None and said not in columns:
        raise UserError(f"{path}: has no column {said!r} (its columns: {', '.join(columns)}); {nearest(said, columns)}")
    found = said or next((name for name in usual if name in columns), None)
    if found is None and needed:
        raise UserError(f"{path}: which of its columns is the {option}? ({', '.join(columns)}) Say so with ?{option}=COLUMN.")
    return found
