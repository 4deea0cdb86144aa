"""Which class a label of the data means: by WordNet id, by name, or by number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal.embed import Embeddings
from crossmodal.errors import UserError, nearest


def match(
    found: Sequence[Sequence[str]] | None, classes: Sequence[Sequence[str]], ids: Sequence[str] | None = None
) -> tuple[list[int], str]:
    """(for each of the data's classes ``found`` its number among ``classes``, how they were matched).

    Folders named by WordNet id are looked up in ``ids``, which go with ``classes`` one to one; folders named in words by any name of
    a class, capitals, blanks, underscores and hyphens aside; folders named 0, 1, 2 … by that number. Data without names (``found`` None)
    carry numbers already.

    Errors: ``UserError`` naming the first class that means nothing here.
    """
    if found is None:
        return list(range(len(classes))), "number"
    if ids is not None and len(ids) != len(classes):
        raise UserError(f"there are {len(classes):,} classes but {len(ids):,} WordNet ids; they go one to one.")
    names = [each[0] for each in found]
    by_id = {wordnet: n for n, wordnet in enumerate(ids or ())}
    if all(name in by_id for name in names):
        return [by_id[name] for name in names], "WordNet id"
    by_name = {_plain(name): n for n, several in reversed(list(enumerate(classes))) for name in several}
    if all(_plain(name) in by_name for name in names):
        return [by_name[_plain(name)] for name in names], "name"
    if all(name.isdecimal() and int(name) < len(classes) for name in names):
        return [int(name) for name in names], "number"
    lost = next(name for name in names if _plain(name) not in by_name)
    raise UserError(
        f"the data's class {lost!r} is none of the {len(classes):,} classes, by name, WordNet id or number; "
        f"{nearest(lost, [each[0] for each in classes])}"
    )


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def numbers(pictures: Embeddings, number: Sequence[int]) -> Tensor:
    """[N]: each picture's class, by what ``match`` said of the data's. Errors: ``UserError`` for a label that is none of them."""
    for key, label in zip(pictures.keys, pictures.labels, strict=True):
        if not isinstance(label, int) or not 0 <= label < len(number):
            raise UserError(f"{key}: its label is {label}, but there are {len(number)} classes, 0 to {len(number) - 1}.")
    return torch.tensor([number[label] for label in pictures.labels])
