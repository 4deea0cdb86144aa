"""Whether a model sees who does what to whom: pictures and captions that differ in little else (Winoground, SugarCrepe)."""

from __future__ import annotations

import torch

from crossmodal.errors import UserError
from crossmodal.evaluation.tasks.base import Answer, Case, Task, shared


class Composition(Task):
    """text_acc, image_acc and, where an instance has several pictures, acc (both), under CLIP_benchmark's names.

    An instance is the samples whose keys agree up to the last "/"; its first captions, in the order of its pictures, are the
    right ones. Strictly greater scores count, as in Winoground's paper
    (https://arxiv.org/abs/2204.03162, equations 1–3): a tie is no answer.
    """

    metric = "text_acc"
    reads_captions = True

    def answer(self, case: Case) -> Answer:
        pairs = case.pictures()
        texts: list[list[int]] = [[] for _ in pairs.keys]
        for m, n in enumerate(pairs.owner.tolist()):
            texts[n].append(m)
        instances: dict[str, list[int]] = {}
        for n, key in enumerate(pairs.keys):
            instances.setdefault(key.rpartition("/")[0], []).append(n)
        most = max(len(group) for group in instances.values())
        answer = Answer(metrics={}, broken=pairs.broken, pictures=len(pairs), about={"instances": len(instances)})
        lost = [key for key, group in instances.items() if len(group) < most]
        for key, group in instances.items():
            if key in lost:
                continue  # a picture of it did not decode
            right = [texts[n][0] for n in group if texts[n]]
            others = [m for n in group for m in texts[n][1:]]
            if len(right) < len(group) or len(right) + len(others) < 2:
                raise UserError(f"{key}: an instance has a right caption for each picture, and at least one other.")
            scores = pairs.image[group] @ pairs.text[right + others].T  # [pictures, captions]
            own = scores.diagonal()
            apart = ~torch.eye(*scores.shape, dtype=torch.bool)
            rival = lambda dim, scores=scores, apart=apart: scores.masked_fill(~apart, -torch.inf).amax(dim)
            text = bool((own > rival(1)).all())
            ways = {"text": text}
            if len(group) > 1:
                image = bool((own > rival(0)[: len(group)]).all())
                ways |= {"image": image, "group": text and image}
            answer.rows += [{"way": way, "key": key, "rank": int(not hit)} for way, hit in ways.items()]
        answer.shares = {name: (way, 1) for name, way in {"text_acc": "text", "image_acc": "image", "acc": "group"}.items()}
        if most == 1:
            answer.shares = {"text_acc": ("text", 1)}
        if lost:
            answer.warnings.append(f"{len(lost)} instances are left out, since a picture of theirs does not decode")
        return shared(answer)
