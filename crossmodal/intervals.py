"""How sure a figure is: bootstrap intervals by picture, and whether one model really beats another on the same pictures.

A picture is what is drawn anew; its captions stay with it, since they are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
Interval = tuple[float, float]


def share(hits: np.ndarray, counts: np.ndarray | None = None, resamples: int = 2000, seed: int = 0) -> Interval:
    """The 95 % interval of Σ hits / Σ counts over N pictures, by bootstrap (Efron & Tibshirani 1993, chapter 13).

    Args:
        hits: [N] questions of a picture that were answered rightly.
        counts: [N] questions of a picture; None: one each.

    Two pictures all right and two all wrong are added first (Agresti & Coull 1998), without which the interval of a share near
    0 or 1, or of few pictures, is too short, and of a perfect score has no length at all. Pictures alike are drawn together
    (multinomially), so the cost does not grow with N.
    """
    hits = np.asarray(hits, float)
    counts = np.ones_like(hits) if counts is None else np.asarray(counts, float)
    hits, counts = hits[counts > 0], counts[counts > 0]
    usual = counts.mean()
    kinds, number = np.unique(np.stack([hits, counts], 1), axis=0, return_counts=True)
    kinds = np.concatenate([kinds, [[usual, usual], [0, usual]]])
    number = np.concatenate([number, [2, 2]])
    drawn = np.random.default_rng(seed).multinomial(number.sum(), number / number.sum(), size=resamples)  # [R, kinds]
    low, high = np.percentile((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]), LEVEL)
    return float(low), float(high)


def bootstrap(figure: Callable[[np.ndarray], float], count: int, resamples: int = 1000, seed: int = 0) -> Interval:
    """The 95 % percentile interval of any figure; ``figure`` takes the indices [N] of the pictures drawn."""
    chance = np.random.default_rng(seed)
    low, high = np.nanpercentile([figure(chance.integers(count, size=count)) for _ in range(resamples)], LEVEL)
    return float(low), float(high)


def class_mean(hits: np.ndarray, labels: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """The 95 % interval of mean per-class recall over the classes that occur; pictures [N] are drawn within their class.

    A class of n pictures spreads √(n / (n - 1)) too little when drawn from itself (Rao & Wu 1988), which is put right.
    Classes of one picture say nothing of their own spread and are drawn together.
    """
    chance = np.random.default_rng(seed)
    _, place, size = np.unique(labels, return_inverse=True, return_counts=True)
    group = np.where(size[place] > 1, place, len(size))  # one group for all the single ones
    number = np.bincount(group, minlength=len(size) + 1).astype(float)
    recall = np.bincount(group, hits, minlength=len(size) + 1) / number.clip(1)
    weight = np.append(size > 1, (size == 1).sum()).astype(float)  # how many classes a group stands for
    used = number > 0
    number, recall, weight = number[used].astype(int), recall[used], weight[used]
    wide = np.sqrt(number / (number - 1).clip(1))
    drawn = chance.binomial(number, recall, size=(resamples, len(number))) / number  # [R, groups]
    low, high = np.percentile((recall + (drawn - recall) * wide) @ weight / len(size), LEVEL)
    return float(max(0, low)), float(min(1, high))


def paired(difference: np.ndarray, resamples: int = 20000, seed: int = 0) -> tuple[float, Interval]:
    """Whether B beats A on the same N pictures: (two-sided p, the 95 % bootstrap interval of Σ ``difference``).

    ``difference`` [N] is what a picture adds to B's figure, less what it adds to A's. The test flips signs: were the models alike,
    each picture's difference would as well have been the other way round. p is a mid-p (Lancaster 1961): outcomes as extreme as
    the one seen count half, so that ties are called different in 5 % of cases and not in fewer. Where all differences have one size
    (one question a picture) it is McNemar's test in its exact mid-p form (Fagerland, Lydersen & Laake 2013); otherwise
    ``resamples`` flips are drawn.
    """
    difference = np.asarray(difference, float)
    sizes, number = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    chance = np.random.default_rng(seed)
    kinds, how_often = np.unique(difference, return_counts=True)
    drawn = chance.multinomial(len(difference), how_often / len(difference), size=resamples)
    low, high = np.percentile(drawn @ kinds, LEVEL)
    if not len(sizes):
        return 1.0, (float(low), float(high))
    if len(sizes) == 1:
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum())), (float(low), float(high))
    flipped = np.abs((2 * chance.binomial(number, 0.5, size=(resamples, len(sizes))) - number) @ sizes)
    seen = abs(difference.sum())
    near = 1e-9 * sizes.max()
    p = ((flipped > seen + near).sum() + 0.5 * (np.abs(flipped - seen) <= near).sum() + 0.5) / (resamples + 1)
    return float(p), (float(low), float(high))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided mid-p of McNemar's test, from how many pictures only A and only B answered rightly."""
    n, low = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    logs = np.cumsum(np.log(np.concatenate([[1.0], np.arange(n, n - low, -1) / np.arange(1, low + 1)])))  # ln of n over 0 … low
    chances = np.exp(logs - n * np.log(2.0))
    if 2 * low == n:
        return 1.0 - 0.5 * float(chances[low])
    return float(min(1.0, 2 * chances.sum() - chances[low]))
