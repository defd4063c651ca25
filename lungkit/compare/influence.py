"""How much every test image moves a score: its derivative by the image's weight. Pure numbers.

With weights w, all 1, a score is a smooth function of w; its derivative by w_i is the image's
influence (the infinitesimal jackknife: Jaeckel 1972; Efron 1982). Influences sum to 0, and

    score(w) = score(1) + sum_i (w_i - 1) influence_i + a remainder that falls with the images

so that resampling groups of images is a matrix product, whatever the score. Of AUROC they are the
placement values (DeLong et al. 1988; of groups: Obuchowski 1997), of a mean over groups the
pseudo-values of Dorfman, Berbaum and Metz 1992.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lungkit.data.result import TUMOUR_SCORES


def influence(name: str, probabilities: np.ndarray, labels: np.ndarray,
              benign: int | None = None) -> np.ndarray:
    """The influence of every image on a score of "classify": float64 [N], of sum 0.

    probabilities: float [N, C]; labels: int [N], 0..C-1; benign: the class that is no tumour, of
    sensitivity and specificity. Raises KeyError for a score that is not among SCORES.
    """
    said = probabilities.argmax(1)
    if name in TUMOUR_SCORES:
        among = (labels != benign) if name == "sensitivity" else (labels == benign)
        right = (said == benign) == (labels == benign)
        return _mean_over(right, among)
    return SCORES[name](probabilities, labels, said)


def of_items(name: str, items: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """A score of "segment" and the influence of every item on it: float64 [N], of sum 0.

    items: {true, said, both, lesions, found, dice, surface_dice: [N]}, as a result's .npz has them.
    Raises KeyError for a score that is not among ITEM_SCORES.
    """
    part, whole = ITEM_SCORES[name](items)
    score = float(part.sum() / whole.sum())
    return score, (part - score * whole) / whole.sum()


def _mean_over(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Of the mean of `values` over the images `among`."""
    return np.where(among, values - values[among].mean(), 0.0) / among.sum()


def _accuracy(_: np.ndarray, labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    return _mean_over(said == labels, np.ones(len(labels), bool))


def _balanced_accuracy(_: np.ndarray, labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    there = np.unique(labels)
    return sum(_mean_over(said == labels, labels == k) for k in there) / len(there)


def _macro_f1(probabilities: np.ndarray, labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    """F1 is 2 x both / (true + said); a class that is neither counts as 0 and moves nothing."""
    total = np.zeros(len(labels))
    for k in range(probabilities.shape[1]):
        true, told = labels == k, said == k
        count = true.sum() + told.sum()
        if count:
            f1 = 2 * (true & told).sum() / count
            total += (2.0 * (true & told) - f1 * (true.astype(float) + told)) / count
    return total / probabilities.shape[1]


def _weighted_f1(_: np.ndarray, labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The mean of each class's F1 by its share of images, which the weights move as well."""
    total = np.zeros(len(labels))
    for k in np.unique(labels):
        true, told = labels == k, said == k
        count, share = true.sum() + told.sum(), true.mean()
        f1 = 2 * (true & told).sum() / count
        moved = (2.0 * (true & told) - f1 * (true.astype(float) + told)) / count
        total += share * moved + f1 * (true - share) / len(labels)
    return total


def _grade_closeness(probabilities: np.ndarray, labels: np.ndarray,
                     said: np.ndarray) -> np.ndarray:
    away = np.abs(labels - said) / (probabilities.shape[1] - 1)
    return _mean_over(1 - away, np.ones(len(labels), bool))


def _kappa_quadratic(_: np.ndarray, labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Kappa is 1 - observed / by chance, both mean squares of true - said; 0 where cut at 0."""
    observed = (labels - said)**2.0
    true, told = labels - labels.mean(), said - said.mean()
    apart = labels.mean() - said.mean()
    by_chance = true.var() + told.var() + apart**2
    if not by_chance or observed.mean() >= by_chance:
        return np.zeros(len(labels))
    moved = true**2 - true.var() + told**2 - told.var() + 2 * apart * (true - told)
    return (observed.mean() * moved / by_chance - (observed - observed.mean())) \
        / by_chance / len(labels)


def _auroc(probabilities: np.ndarray, labels: np.ndarray, _: np.ndarray) -> np.ndarray:
    there = np.unique(labels)
    if len(there) == 1:
        return np.zeros(len(labels))
    return sum(_auroc_of_one(probabilities[:, k], labels == k) for k in there) / len(there)


def _auroc_of_one(score: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Placements: of a positive the share of negatives below it, of a negative that above."""
    placement = np.empty(len(score))
    high, low = np.sort(score[positive]), np.sort(score[~positive])
    placement[positive] = _share_below(low, score[positive])
    placement[~positive] = 1 - _share_below(high, score[~positive])
    area = placement[positive].mean()
    return (placement - area) / np.where(positive, len(high), len(low))


def _share_below(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of `ordered` below each value, ties counted half."""
    return (np.searchsorted(ordered, values, "left")
            + np.searchsorted(ordered, values, "right")) / 2 / len(ordered)


def _auprc_weighted(probabilities: np.ndarray, labels: np.ndarray, _: np.ndarray) -> np.ndarray:
    total = np.zeros(len(labels))
    for k in np.unique(labels):
        true = labels == k
        share = true.mean()
        precision, moved = _average_precision(probabilities[:, k], true)
        total += share * moved + precision * (true - share) / len(labels)
    return total


def _average_precision(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision and its influences.

    It is the mean over positives i of true(s_i) / all(s_i), which count the images that score s_i
    or more. Image j is among those of every i at or below it.
    """
    order = np.argsort(-score, kind="stable")
    ranked, true = score[order], positive[order].astype(float)
    last = np.searchsorted(-ranked, -ranked, "right") - 1  # of the ties of each
    first = np.searchsorted(-ranked, -ranked, "left")
    count = last + 1.0
    precision = np.cumsum(true)[last] / count
    average = (true * precision).sum() / true.sum()
    # sums over the positives i at or below j: of 1 / all(s_i), and of precision(s_i) / all(s_i)
    tail = np.cumsum((true / count)[::-1])[::-1][first]
    weighted = np.cumsum((true * precision / count)[::-1])[::-1][first]
    moved = np.empty(len(score))
    moved[order] = (true * (precision - average) + true * tail - weighted) / true.sum()
    return float(average), moved


SCORES: dict[str, Callable] = {
    "accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "macro_f1": _macro_f1,
    "weighted_f1": _weighted_f1, "auroc": _auroc, "auprc_weighted": _auprc_weighted,
    "kappa_quadratic": _kappa_quadratic, "grade_closeness": _grade_closeness}


def _of_lesions(name: str) -> Callable:
    """Numerator and denominator of a mean over the items with foreground."""
    def of(items: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        shown = items["true"] > 0
        return np.where(shown, items[name], 0.0), shown.astype(float)
    return of


# of each item what it adds above and below the line: every score is a ratio of two sums
ITEM_SCORES: dict[str, Callable] = {
    "dice": _of_lesions("dice"), "surface_dice": _of_lesions("surface_dice"),
    "dice_pooled": lambda items: (2.0 * items["both"], items["true"] + items["said"]),
    "lesion_sensitivity": lambda items: (items["found"], items["lesions"])}
