"""Pictures in one folder a class (torchvision's ImageFolder): ``folder:DIR``, the folder's name is the class's."""

from __future__ import annotations

from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


class FolderSource(Source):
    """DIR/CLASS/PICTURE; underscores in a class's folder name read as spaces."""

    def __init__(self, path: str):
        root = Path(path).expanduser()
        if not root.is_dir():
            raise UserError(f"{path}: no such folder.")
        names = sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
        self.files = [
            (file, label)
            for label, name in enumerate(names)
            for file in sorted((root / name).rglob("*"))
            if file.suffix.lower() in PICTURES
        ]
        if not self.files:
            loose = sum(f.suffix.lower() in PICTURES for f in root.iterdir())
            what = f"holds {loose} pictures, but no folders" if loose else "holds no pictures"
            raise UserError(f"{path}: {what}; one folder for each class is expected, such as {path}/cat/1.jpg.")
        self.root = root
        self.classes = [(name.replace("_", " "),) for name in names]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file, label = self.files[index]
        return Sample(str(file.relative_to(self.root)), file.read_bytes(), self.classes[label], label)
