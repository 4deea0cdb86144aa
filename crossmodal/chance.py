"""Chance that shapes a row: the same for any number of processes, micro-batches and workers, and on every device.

A row of the global batch has a seed, a function of recipe seed, step and row (``Batch.seeds``). Modules that drop
paths or patches, and objectives that mask, draw from it by counting (splitmix64, Steele et al. 2014) and
not from torch's generator, whose numbers depend on what else was drawn on this process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

_seeds: Tensor | None = None  # of the rows that are being encoded


def seed_of(*parts: object) -> int:
    """A 63-bit seed from seed, step, row, view …: the same on every machine and process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def rows(seeds: Tensor | None, name: str) -> Iterator[None]:
    """Within, ``uniform`` draws for the rows with these seeds [B], for what ``name`` says (a view). None: by torch's generator."""
    with _drawing(None if seeds is None else _mix(seeds ^ seed_of(name))):
        yield


def again() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For ``torch.utils.checkpoint``'s ``context_fn``: what is computed again draws the same numbers."""
    return nullcontext(), _drawing(_seeds)


@contextmanager
def _drawing(seeds: Tensor | None) -> Iterator[None]:
    global _seeds
    before, _seeds = _seeds, seeds
    try:
        yield
    finally:
        _seeds = before


def random_state() -> dict[str, Tensor]:
    """The states of torch's generators: "cpu" and, where there is one, "cuda" (the current GPU's)."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(states: dict[str, Tensor]) -> None:
    """Put them back; a GPU's only where there is one."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def uniform(batch: int, n: int, salt: int, device: torch.device) -> Tensor:
    """[B, n] in [0, 1), fp32, for the rows that are being encoded; other salts give other numbers."""
    if _seeds is None:
        return torch.rand(batch, n, device=device)
    assert len(_seeds) == batch, f"{len(_seeds)} rows are being encoded, but numbers are drawn for {batch}"
    return from_seeds(_seeds.to(device), n, salt)


def from_seeds(seeds: Tensor, n: int, salt: int) -> Tensor:
    """Seeds int64 [B] → [B, n] in [0, 1), fp32."""
    count = torch.arange(n, device=seeds.device) * _signed(0x9E3779B97F4A7C15)
    mixed = _mix(_mix(seeds[:, None] ^ salt) + count)  # [B, n]
    return ((mixed >> 40) & (2**24 - 1)) * 2.0**-24


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, which wraps around as the unsigned arithmetic does."""
    z = (z ^ _right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _right(z, 31)


def _right(z: Tensor, by: int) -> Tensor:
    return (z >> by) & (2 ** (64 - by) - 1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a branch [B, ...] is left out for a row with probability ``p``, else times 1 / (1 − p)."""

    def __init__(self, p: float, salt: int):
        super().__init__()
        self.p, self.salt = float(p or 0.0), salt

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = uniform(len(x), 1, self.salt, x.device) >= self.p  # [B, 1]
        return x * (keep.to(x.dtype) / (1 - self.p)).view(-1, *[1] * (x.ndim - 1))


class PatchDropout(nn.Module):
    """FLIP's masking (Li et al. 2023): in training a share ``p`` of the patches is left out; the first ``prefix`` tokens stay.

    Where ``keep`` [B, kept] is set, those patches are taken and no others.
    """

    def __init__(self, p: float, prefix: int, salt: int):
        super().__init__()
        self.p, self.prefix, self.salt = p, prefix, salt
        self.keep: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # [B, prefix + T, W] → [B, prefix + kept, W]
        batch, total, width = x.shape
        if self.keep is not None:
            chosen = self.keep
        elif self.training and self.p:
            patches = total - self.prefix
            kept = max(1, int(patches * (1 - self.p)))
            chosen = uniform(batch, patches, self.salt, x.device).topk(kept).indices.sort().values  # [B, kept]
        else:
            return x
        first = torch.arange(self.prefix, device=x.device).expand(batch, -1)
        return x.gather(1, torch.cat((first, chosen + self.prefix), 1)[..., None].expand(-1, -1, width))


def by_row(tower: nn.Module, is_kind: Callable[[nn.Module], bool], make: Callable[[nn.Module, int], nn.Module]) -> None:
    """Put ``make(module, salt)`` in the place of every module of ``tower`` that ``is_kind``; the salt follows from its name."""
    for name, module in list(tower.named_modules()):
        if is_kind(module):
            parent, _, last = name.rpartition(".")
            setattr(tower.get_submodule(parent), last, make(module, seed_of(name)))
