"""Which images of a pool a repeat is trained on: as many of each class as real has.

A pool of K times as many is used up once around in a random order before an image comes again: of
K consecutive seeds no two share an image, and two draws of different rounds share 1 / K on average.

Feeds cnn_classify's `draws`: another order is another training.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lungkit.data.dataset import Dataset
from lungkit.run import seeds


def num_draws(have: list[int], wanted: list[int]) -> int:
    """How many draws the pool holds that share no image; at least 1.

    have, wanted: images by class, in the pool and in a draw.
    """
    return max(1, min(pool // draw for pool, draw in zip(have, wanted, strict=True)))


def draw_images(labels: np.ndarray, wanted: list[int], arm: str, seed: int,
                replicate: int) -> np.ndarray:
    """Indices of the images a repeat trains on: of each class as many as wanted, or all if fewer.

    labels: int [N], of the pool. wanted: images by class. seed: of the repeat. Returns sorted
    int64 [M].
    """
    drawn = []
    for label, num_wanted in enumerate(wanted):
        pool = np.flatnonzero(labels == label)
        if len(pool) > num_wanted:
            turn, place = divmod(seed, len(pool) // num_wanted)
            order = seeds.pool_draws(arm, turn, replicate, label).permutation(pool)
            pool = order[place * num_wanted:(place + 1) * num_wanted]
        drawn.append(pool)
    return np.sort(np.concatenate(drawn))


def in_turn(counts: dict[str, int]) -> Iterator[str]:
    """Every label as often as counted, in an order in which any run has them in proportion."""
    given, total = dict.fromkeys(counts, 0), sum(counts.values())
    for place in range(1, total + 1):
        label = max(counts, key=lambda name: counts[name] * place / total - given[name])
        given[label] += 1
        yield label


def shared_with_earlier(labels: np.ndarray, wanted: list[int], arm: str, seed: int, replicate: int,
                        repeat: int) -> float:
    """The mean share of a repeat's images that an earlier repeat was trained on, too: 0..1.

    The earlier ones have the seeds seed - repeat .. seed - 1; 0 of repeat 0, which has none.
    """
    own = draw_images(labels, wanted, arm, seed, replicate)
    shares = [np.isin(own, draw_images(labels, wanted, arm, other, replicate)).mean()
              for other in range(seed - repeat, seed)]
    return float(np.mean(shares)) if shares else 0.0


def warnings_of(data: Dataset, real: Dataset) -> list[str]:
    """What the reader of these results must be told."""
    found = [*data.warnings, *real.warnings]
    have, wanted = data.counts["train"], real.counts["train"]
    if all(have[label] <= wanted[label] for label in wanted):
        found.append("the train pool is no larger than one draw: repeats differ by the CNN's seed "
                     "only, not by the images drawn")
    found += [f"class {label} has {have[label]} training images, real has {wanted[label]}"
              for label in wanted if have[label] < wanted[label]]
    return list(dict.fromkeys(found))
