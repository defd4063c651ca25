"""What turns probabilities into a mask: a threshold and the least size of a component, from val.

The Dice of val decides; of settings within SLACK of the best the one with the fewest false
positives, which that Dice does not see where an item has no foreground. Or, where a number of
false positives is given that may be: the most lesions found with no more than these (a point of
the free-response ROC curve: Bunch et al. 1977, Proc SPIE 127:124). A Dice hardly sees a small
lesion, so that the best may drop all of them with the specks that are found in vain.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lungkit.data.segment_scores import components, dice, of_interest
from lungkit.run.faults import Fault

WHITE = 255                  # probabilities are kept as levels 0..255
THRESHOLDS = tuple(np.round(np.arange(0.1, 1, 0.1), 1).tolist())
LEAST = (0, 2, 4, 8, 16, 32, 64, 128, 256)     # voxels of the smallest component that is kept
SLACK = 0.005                # ours: below what val's Dice can tell apart
FOUND_SLACK = 0.01           # ours: the same for the share of lesions found
HALF = ((0.5,), (0,))        # of a recipe that chooses nothing


@dataclass(frozen=True)
class Choice:
    """threshold: a probability; least: voxels. What val scores by it, of `count_item`'s words."""

    threshold: float
    least: int
    dice: float
    false_positives: float   # of an item, the mean
    sensitivity: float       # share of the lesions that is found

    def mask(self, levels: np.ndarray) -> np.ndarray:
        """bool of levels uint8 [Z, Y, X] or [Y, X]."""
        mask = levels >= level_of(self.threshold)
        if self.least < 2:
            return mask
        labels, _ = components(mask)
        keep = np.bincount(labels.ravel()) >= self.least
        keep[0] = False
        return keep[labels]


def level_of(threshold: float) -> int:
    return int(np.ceil(threshold * WHITE))


def choose(predicted: Iterable[tuple[np.ndarray, np.ndarray]],
           grid: tuple[Sequence[float], Sequence[int]] = (THRESHOLDS, LEAST),
           most_false_positives: float | None = None) -> Choice:
    """The best of a grid of thresholds and sizes: by Dice, or by lesions found.

    predicted: (levels uint8, truth as `of_interest` takes it) of every item of val, [Z, Y, X] or
    [Y, X]; one at least has foreground. most_false_positives: of an item, the mean; where no
    setting has so few, one that has the fewest is taken. None: by Dice. Raises Fault where nothing
    is predicted by any of the grid.
    """
    thresholds, least = grid
    overlaps, in_vain, found, lesions, highest, said = [], [], 0, 0, 0, 0
    for levels, marked in predicted:
        highest, true = max(highest, int(levels.max())), marked == 1
        tables = [_by_size(*of_interest(levels >= level_of(threshold), marked), least)
                  for threshold in thresholds]
        said += sum(int(table[0].sum()) for table in tables)
        in_vain.append([table[2] for table in tables])
        found = found + np.array([table[3] for table in tables])
        if true.any():
            lesions += components(true)[1]
            overlaps.append([[dice(int(true.sum()), a, b) for a, b in zip(*table[:2])]
                             for table in tables])
    if not said:
        raise Fault(f"the network finds nothing in any val image (its highest probability is "
                    f"{highest / WHITE:.2f}, the least threshold {min(thresholds):g}): train it "
                    "longer, or with another --loss or more --oversample")
    mean_dice, vain, sensitivity = np.mean(overlaps, 0), np.mean(in_vain, 0), found / lesions
    t, k = _by_dice(mean_dice, vain, grid) if most_false_positives is None else _by_lesions(
        mean_dice, vain, sensitivity, most_false_positives)
    return Choice(thresholds[t], least[k], float(mean_dice[t, k]), float(vain[t, k]),
                  float(sensitivity[t, k]))


def _by_dice(mean_dice: np.ndarray, vain: np.ndarray, grid) -> tuple[int, int]:
    thresholds, least = grid
    # half the best: where all is poor, finding nothing is not as good
    good = np.argwhere(mean_dice >= max(mean_dice.max() - SLACK, mean_dice.max() / 2))
    return min(map(tuple, good), key=lambda at: (vain[at], least[at[1]],
                                                 abs(thresholds[at[0]] - 0.5)))


def _by_lesions(mean_dice: np.ndarray, vain: np.ndarray, sensitivity: np.ndarray,
                most: float) -> tuple[int, int]:
    """Of settings that find nearly as many lesions as any that may be, the one of the best Dice."""
    allowed = vain <= max(most, vain.min())
    good = allowed & (sensitivity >= sensitivity[allowed].max() - FOUND_SLACK)
    return max(map(tuple, np.argwhere(good)), key=lambda at: (mean_dice[at], -vain[at]))


def _by_size(mask: np.ndarray, true: np.ndarray, least: Sequence[int]) -> np.ndarray:
    """int [4, sizes], by the least size: voxels said, of these in the truth, false positives,
    lesions found.
    """
    labels, number = components(mask)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    inside = np.bincount(labels[true], minlength=number + 1)[1:]
    kept = sizes >= np.array(least)[:, None]
    lesions, num_lesions = components(true)
    largest = np.zeros(num_lesions + 1, sizes.dtype)  # of the components that lie in a lesion
    both = true & mask
    np.maximum.at(largest, lesions[both], sizes[labels[both] - 1])
    found = (largest[1:] >= np.maximum(1, least)[:, None]).sum(1)
    return np.stack([kept @ sizes, kept @ inside, (kept & (inside == 0)).sum(1), found])
