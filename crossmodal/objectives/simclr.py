"""SimCLR's objective, as SLIP adds it to CLIP: two views of a picture find each other among all others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmodal import pairwise
from crossmodal.batch import Encoded, Terms, ViewSpec
from crossmodal.objectives.base import Objective
from crossmodal.synced_norm import SyncedBatchNorm

if TYPE_CHECKING:
    from crossmodal.model import Model

#: SLIP's augmentation (Mu et al. 2021, appendix; the authors' code), sigma for 224 pixels.
VIEW = ViewSpec(
    "image",
    (
        ("crop", (0.08, 1.0)),
        ("flip", True),
        ("jitter", (0.4, 0.4, 0.4, 0.1)),
        ("jitter_p", 0.8),
        ("grey", 0.2),
        ("blur", (0.1, 2.0)),
        ("blur_p", 0.5),
    ),
)


class SimCLR(Objective):
    """NT-Xent (Chen et al. 2020, https://arxiv.org/abs/2002.05709, equation 1), in O(N × tile) memory.

    With unit-length projections z of both views of all N pictures, 2N of them, and p(i) the other view of the same picture::

        loss = 1/2N Σ_i −log( exp(z_i · z_p(i) / τ) / Σ_{j ≠ i} exp(z_i · z_j / τ) )

    Nats; chance is ln(2N − 1). With ``contrastive`` it is SLIP (Mu et al. 2021, https://arxiv.org/abs/2112.12750, weight 1.0),
    whose head this is: width-``hidden``-``hidden``-``out`` on the image tower's pooled features.

    Args:
        temperature: τ.
        hidden, out: widths of the head.
        norm: "none", or "synced" for the paper's batch-norm after each hidden layer, with the statistics of the whole batch
            over all processes; that one cannot be cut into micro-batches.
    """

    views = {"simclr.a": VIEW, "simclr.b": VIEW}
    needs = ("simclr.a:pooled", "simclr.b:pooled")

    def __init__(self, *, temperature: float = 0.1, hidden: int = 4096, out: int = 256, norm: Literal["none", "synced"] = "none"):
        super().__init__()
        self.temperature, self.hidden, self.out, self.norm = temperature, hidden, out, norm
        self.whole_batch = norm == "synced"

    def attach(self, model: Model, steps: int) -> None:
        layers: list[nn.Module] = []
        for inside in (model.image.width, self.hidden):
            layers.append(nn.Linear(inside, self.hidden))
            layers += [SyncedBatchNorm(self.hidden)] if self.norm == "synced" else []
            layers.append(nn.ReLU(inplace=True))
        self.head = nn.Sequential(*layers, nn.Linear(self.hidden, self.out))

    def project(self, encoded: Encoded) -> dict[str, Tensor]:
        return {view: self._project(encoded[f"simclr.{view}:pooled"]) for view in ("a", "b")}

    def _project(self, pooled: Tensor) -> Tensor:
        z = self.head(pooled)  # [B, W] → [B, out]
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)

    def batch_terms(self, gathered: dict[str, Tensor], scalars: dict[str, Tensor]) -> Terms:
        a, b = gathered["a"], gathered["b"]  # [N, out]
        z = torch.stack((a, b), 1).flatten(0, 1)  # [2N, out], both views of a picture side by side
        log_scale = torch.full((1,), -math.log(self.temperature), dtype=z.dtype, device=z.device)
        rows = pairwise.log_sum_exp(z, z, log_scale, without_self=True).rows  # [2N]
        return {"simclr": rows.mean() - (a * b).sum(1).mean() / self.temperature}

    def chance(self, pairs: int) -> dict[str, float]:
        return {"simclr": math.log(2 * pairs - 1)}
