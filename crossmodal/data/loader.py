"""From a source to batches: what is made of each row of each step (``order.py`` says which sample that is).

``TrainingPairs`` decodes and varies; ``FrozenPairs`` and ``KnownTexts`` stand before it where a tower is frozen and its outputs
are computed once; ``training_batches`` collates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from crossmodal import distributed
from crossmodal.batch import Batch, Sample, ViewSpec
from crossmodal.chance import seed_of
from crossmodal.data.decoded import Decoded
from crossmodal.data.order import Steps, Ticket
from crossmodal.data.sources.base import Source
from crossmodal.data.views import BrokenPicture, EvalView, TrainView, load_picture
from crossmodal.errors import UserError
from crossmodal.recipe import Augment, DataPart

TRIES = 100  # replacements for a broken sample before giving up: a source where so many fail is no source
STRIDE = 0.618  # of the source: where the replacement of a replacement is looked for, far from whatever is broken here


@dataclass
class Row:
    """What is made of a ticket; collated into a ``Batch``."""

    ticket: Ticket
    images: dict[str, Tensor]  # view → uint8 [3, H, W]
    texts: dict[str, str]  # view → the caption drawn
    frozen: dict[str, Tensor]  # "view:field" → […], instead of an image
    key: str  # names the sample
    broken: tuple[tuple[str, str], ...] = ()


class TrainingPairs(Dataset):
    """Tickets → every view of a sample, varied by seed, step, row and view."""

    def __init__(self, source: Source, views: dict[str, ViewSpec], data: DataPart, resize: str, seed: int):
        self.source, self.seed = source, seed
        self.images = {n: self._view(v, data, resize) for n, v in views.items() if v.kind == "image"}
        self.texts = [n for n, v in views.items() if v.kind == "text"]
        self.at_least = max((view.at_least for view in self.images.values()), default=1)

    @staticmethod
    def _view(spec: ViewSpec, data: DataPart, resize: str) -> TrainView:
        if spec.options is None:
            return TrainView(data.image_size, data.augment, resize)
        options = dict(spec.options)
        return TrainView(options.pop("image_size", data.image_size), Augment(**options), resize)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ticket: Ticket) -> Row:
        sample, images, broken = self.varied(ticket)
        return Row(ticket, images, self.draw(sample.captions, ticket), {}, sample.key, broken)

    def varied(self, ticket: Ticket) -> tuple[Sample, dict[str, Tensor], tuple]:
        """(the ticket's sample or its replacement, its views, what was broken)."""
        if ticket.soon is not None:
            self.source.soon(ticket.soon)
        sample, picture, broken = self.whole(ticket.index)
        at = (self.seed, ticket.step, ticket.row)
        return sample, {name: view(picture, seed_of(*at, name)) for name, view in self.images.items()}, broken

    def draw(self, captions: tuple[str, ...], ticket: Ticket) -> dict[str, str]:
        """A caption for each text view: all of a picture's take turns over the epochs, from a first one by chance."""
        return {n: captions[(seed_of(self.seed, ticket.index, n) + ticket.epoch) % len(captions)] for n in self.texts}

    def decode_once(self, workers: int) -> None:
        """Keep every picture decoded; see ``Decoded``."""
        self.source = Decoded(self.source, self.at_least, workers)

    def whole(self, index: int) -> tuple[Sample, Tensor, tuple]:
        """The sample at ``index`` or, where its picture or text is broken, the next one, or one far from it, with the reasons."""
        broken, length = [], len(self.source)
        for attempt in range(TRIES):
            place = (index + attempt if attempt < 2 else index + 1 + round((attempt - 1) * STRIDE * length)) % length
            key = f"sample {place}"
            try:
                sample = self.source[place]
                key = sample.key
                if self.texts and not sample.captions:
                    raise BrokenPicture("has no caption")
                return sample, load_picture(sample.image, self.at_least), tuple(broken)
            except (BrokenPicture, OSError) as error:
                broken.append((key, str(error)))
        raise UserError(f"{TRIES} samples all over the data cannot be used, the first {broken[0][0]!r}: {broken[0][1]}.")


class FrozenPairs(Dataset):
    """``TrainingPairs`` behind a frozen image tower: ``copies`` variants of every picture are encoded once, before
    training, and take turns over the epochs. No picture is decoded and no frozen layer runs in a step.

    ``encode`` gives a view's pictures' fields, {field: [B, …]}, of which N × copies rows are kept as they come. Under several processes
    each encodes its share and gets the whole.
    """

    def __init__(
        self, pairs: TrainingPairs, encode: Callable[[str, Tensor], dict[str, Tensor]], copies: int, workers: int, batch_size: int = 128
    ):
        self.pairs, self.copies, self.texts = pairs, copies, pairs.texts
        world, rank, total = distributed.world_size(), distributed.rank(), len(pairs)
        share = range(total * rank // world, total * (rank + 1) // world)
        # A negative step, which no training step has: these variants are drawn from chances of their own.
        tickets = [Ticket(-1 - copy, index, copy, index) for copy in range(copies) for index in share]
        batches = [tickets[i : i + batch_size] for i in range(0, len(tickets), batch_size)]
        captions: dict[int, tuple[str, ...]] = {}
        keys: dict[int, str] = {}
        broken: dict[str, str] = {}
        kept: dict[str, list[Tensor]] = {}
        quiet = not (distributed.is_main() and sys.stderr.isatty())
        with tqdm(total=len(tickets), unit="picture", desc="encode with the frozen tower", disable=quiet, leave=False) as bar:
            loader = DataLoader(_Frozen(pairs), batch_sampler=batches, collate_fn=list, num_workers=workers, generator=torch.Generator())
            for rows in sentences(loader):
                for view in pairs.images:
                    for field, x in encode(view, torch.stack([row.images[view] for row, _ in rows])).items():
                        kept.setdefault(f"{view}:{field}", []).append(x.cpu())
                captions.update({row.ticket.index: said for row, said in rows})
                keys.update({row.ticket.index: row.key for row, _ in rows})
                broken.update(b for row, _ in rows for b in row.broken)
                bar.update(len(rows))
        mine = {name: torch.cat(parts).unflatten(0, (copies, len(share))) for name, parts in kept.items()}
        everyone = distributed.all_objects((mine, captions, broken, keys))
        self.frozen = {name: torch.cat([each[0][name] for each in everyone], 1) for name in mine}  # [copies, N, …]
        self.captions = {index: said for each in everyone for index, said in each[1].items()}
        self.broken = tuple({key: why for each in everyone for key, why in each[2].items()}.items())
        self.keys = {index: key for each in everyone for index, key in each[3].items()}

    def __getitem__(self, ticket: Ticket) -> Row:
        frozen = {name: table[ticket.epoch % self.copies, ticket.index] for name, table in self.frozen.items()}
        return Row(ticket, {}, self.pairs.draw(self.captions[ticket.index], ticket), frozen, self.keys[ticket.index])


class KnownTexts(Dataset):
    """Pairs behind a frozen text tower: every caption is encoded once, before training, and each row brings what the tower made of its own.

    ``encode`` gives captions' fields, {field: [B, …]}, on the CPU. Under several processes each encodes its share and gets the whole.
    """

    def __init__(
        self,
        pairs: TrainingPairs | FrozenPairs,
        captions: Iterable[str],
        encode: Callable[[list[str]], dict[str, Tensor]],
        batch_size: int = 256,
    ):
        self.pairs, self.texts = pairs, pairs.texts
        unique = sorted(set(captions), key=lambda text: (len(text), text))  # like lengths together
        self.place = {text: n for n, text in enumerate(unique)}
        batches = [unique[i : i + batch_size] for i in range(0, len(unique), batch_size)]
        world, rank = distributed.world_size(), distributed.rank()
        mine = batches[len(batches) * rank // world : len(batches) * (rank + 1) // world]
        quiet = not (distributed.is_main() and sys.stderr.isatty())
        bar = tqdm(mine, unit="batch", desc="encode captions with the frozen tower", disable=quiet, leave=False)
        parts = [part for each in distributed.all_objects([encode(batch) for batch in bar]) for part in each]
        self.known = {field: torch.cat([part[field] for part in parts]) for field in parts[0]}

    def __getitem__(self, ticket: Ticket) -> Row:
        row = self.pairs[ticket]
        row.frozen |= {f"{view}:{field}": x[self.place[text]] for view, text in row.texts.items() for field, x in self.known.items()}
        return row


class _Frozen(Dataset):
    """A ticket's row together with all of its captions."""

    def __init__(self, pairs: TrainingPairs):
        self.pairs = pairs

    def __getitem__(self, ticket: Ticket) -> tuple[Row, tuple[str, ...]]:
        sample, images, broken = self.pairs.varied(ticket)
        return Row(ticket, images, {}, {}, sample.key, broken), sample.captions


def check_batch(data: DataPart, length: int) -> None:
    """Refuse a batch that does not divide by the processes or exceeds the data. Errors: ``UserError``."""
    world = distributed.world_size()
    if data.batch_size % world:
        raise UserError(
            f"data.batch_size is {data.batch_size}, which {world} processes cannot share evenly; make it a multiple of {world}."
        )
    if data.batch_size > length:
        raise UserError(f"data.batch_size is {data.batch_size}, but {data.train} has only {length} pictures; make it smaller.")


def training_batches(
    pairs: TrainingPairs | FrozenPairs | KnownTexts,
    source: Source,
    data: DataPart,
    tokenize: Callable[[list[str]], Tensor],
    seed: int,
    start: int,
    stop: int,
) -> DataLoader:
    """This process's batches for the steps ``start`` to ``stop``, over a source's samples."""

    def collate(rows: list[Row]) -> Batch:
        # default_collate stacks straight into the memory that a worker shares with the training process.
        stack = lambda field: {n: default_collate([getattr(r, field)[n] for r in rows]) for n in getattr(rows[0], field)}
        return Batch(
            images=stack("images"),
            texts={name: tokenize([r.texts[name] for r in rows]) for name in rows[0].texts},
            rows=torch.tensor([r.ticket.row for r in rows]),
            index=torch.tensor([r.ticket.index for r in rows]),
            seeds=torch.tensor([seed_of(seed, r.ticket.step, r.ticket.row) for r in rows]),
            ids={name: torch.tensor([seed_of(r.texts[name]) for r in rows]) for name in rows[0].texts},
            keys=tuple(r.key for r in rows),
            broken=tuple(b for r in rows for b in r.broken),
            frozen=stack("frozen"),
        )

    inner = pairs.pairs if isinstance(pairs, KnownTexts) else pairs
    workers = 0 if isinstance(inner, FrozenPairs) else min(data.workers, stop - start)  # nothing is decoded any more
    return DataLoader(
        pairs,
        batch_sampler=Steps(source, seed, data.batch_size, start, stop),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker if workers else None,
        generator=torch.Generator(),  # a loader draws a number at its start: not from the one that dropout draws from
    )


def sentences(loader: DataLoader) -> Iterator:
    """The loader's batches; a worker's ``UserError`` comes as its sentence, without torch's traceback around it."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None


def _quiet_worker(_: int) -> None:
    """Ctrl-C is the training process's to handle; a worker ends with it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


class EvaluationPictures(Dataset):
    """Index → (index, picture or None, sample, why it is None)."""

    def __init__(self, source: Source, view: EvalView, rows: range):
        self.source, self.view, self.rows = source, view, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[int, Tensor | None, Sample, str]:
        index = self.rows[place]
        try:
            sample = self.source[index]
        except OSError as error:
            return index, None, Sample(f"sample {index}", b""), str(error)
        about = Sample(sample.key, b"", sample.captions, sample.label)  # the bytes have served
        try:
            return index, self.view(load_picture(sample.image)), about, ""
        except BrokenPicture as error:
            return index, None, about, str(error)


def evaluation_batches(source: Source, view: EvalView, rows: range, batch_size: int = 64, workers: int = 0) -> DataLoader:
    """Lists of ``EvaluationPictures`` items, each row once and in order. A few batches are not worth starting workers for."""
    workers = workers if len(rows) > 4 * batch_size else 0
    pictures = EvaluationPictures(source, view, rows)
    return DataLoader(pictures, batch_size, collate_fn=list, num_workers=workers, generator=torch.Generator())
