"""Images that are unlike all others of their class: how far off each is, and how far is usual.

An image is as far off as the k-th nearest other group of its class (Ramaswamy et al. 2000, ACM
SIGMOD 29:427, who take the k-th nearest point), and a group is as near as its nearest image. So
what an image's own patient or slide shows brings it no nearer, and neither do a few strange groups
that are alike. Three things are measured so:

  features  the distance by the features of a pretrained network
  pixels    the distance by the quantiles of every channel: light, contrast and colour, which such
            features pass over
  label     the distance by features over that to the nearest other class: less there than here is
            what a wrong label looks like (the inverse of the trust score of Jiang et al. 2018,
            arXiv:1805.11783)

What is usual is of the same numbers: their logarithm is taken for normal, with the median of what
is there, and the spread that its quantiles from the median up to the ninth tenth have. Outliers,
which lie beyond, barely move either. A rank among the distances could not say that there are none:
it calls the same share of any images the strangest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 5        # ours: of strange groups that are alike so many are found all the same
FEWEST = 20           # images of a class; with fewer the tail is a guess
SHARES = np.arange(0.55, 0.91, 0.05)   # quantiles that the spread is taken from; ours
DF_SHARE = 1 / 3      # degrees of freedom of the tail, a share of n: by simulation, see `Usual.p`
CHUNK = 512           # rows of distances held at a time
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of a channel; ours
FEATURES, PIXELS, LABEL = MEASURES = ("features", "pixels", "label")


@dataclass(frozen=True)
class Apart:
    """distance: float64 [N]; nearest: int64 [N], the nearest image of another group."""

    distance: np.ndarray
    nearest: np.ndarray


def apart(features: np.ndarray, groups: np.ndarray, neighbours: int = NEIGHBOURS) -> Apart:
    """How far off each image of a class is. features: float [N, D]; groups: str [N].

    Needs more than `neighbours` groups.
    """
    return apart_from(features, groups, features, groups, neighbours)


def apart_from(features: np.ndarray, groups: np.ndarray, reference: np.ndarray,
               reference_groups: np.ndarray, neighbours: int = NEIGHBOURS) -> Apart:
    """How far off images are from those of a reference [M, D], but for their own groups' there."""
    order = np.argsort(reference_groups, kind="stable")
    names, starts = np.unique(reference_groups[order], return_index=True)
    if len(names) - np.isin(names, groups).any() < neighbours:
        raise ValueError(f"{len(names)} groups, of which {neighbours} others are needed")
    reference = reference[order].astype(np.float64)
    squares, own = (reference**2).sum(1), groups[:, None] == names
    sizes = np.diff([*starts, len(reference)])
    distance, nearest = np.empty(len(features)), np.empty(len(features), np.int64)
    for start in range(0, len(features), CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = features[rows].astype(np.float64)
        found = (chunk**2).sum(1)[:, None] - 2 * chunk @ reference.T + squares
        found = np.sqrt(np.maximum(found, 0))
        found[np.repeat(own[rows], sizes, 1)] = np.inf
        nearest[rows] = order[found.argmin(1)]
        of_groups = np.minimum.reduceat(found, starts, 1)
        distance[rows] = np.partition(of_groups, neighbours - 1, 1)[:, neighbours - 1]
    return Apart(distance, nearest)


@dataclass(frozen=True)
class Usual:
    """What distances of a class are usual: of their logarithm the centre, the spread, and n."""

    centre: float
    spread: float
    n: int

    def p(self, distance: np.ndarray) -> np.ndarray:
        """float64 [N]: the share of ordinary images that are expected to be as far off, or more.

        By Student's t with n / 3 degrees of freedom, for centre and spread are estimates: of normal
        logarithms 1.1 % of fresh ones then have a p below 0.01 from n = 20 to 300 (4,000 samples
        each; with 5 % of outliers in the sample 0.3 to 0.6 %); by the normal tail 3 % at n = 20.
        """
        from scipy.special import stdtr

        away = _log(distance) - self.centre
        return stdtr(self.n * DF_SHARE, -away / max(self.spread, 1e-9))

    def distance_at(self, p: float) -> float:
        """The distance whose p this is."""
        from scipy.special import stdtrit

        return float(np.exp(self.centre - self.spread * stdtrit(self.n * DF_SHARE, p)))


def usual(distance: np.ndarray) -> Usual:
    """What is usual among the distances float64 [N] of one class, outliers among them or not."""
    from scipy.special import ndtri

    logs, scores = _log(distance), ndtri(SHARES)
    centre = float(np.median(logs))
    rise = np.quantile(logs, SHARES) - centre
    return Usual(centre, float((rise * scores).sum() / (scores**2).sum()), len(logs))


def _log(distance: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(distance, 1e-12))  # copies in several groups are at no distance


def levels(image: np.ndarray) -> np.ndarray:
    """float64 [5 C], the quantiles of every channel of an image uint8 [S, S, C]."""
    return np.quantile(image.reshape(-1, image.shape[-1]), LEVELS, axis=0).ravel()


def quantile(distance: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """float64 [N]: the share of the class's images of other groups that are less far off."""
    less = distance[None, :] < distance[:, None]
    others = groups[None, :] != groups[:, None]
    return (less & others).sum(1) / others.sum(1)


# ------------------------------------------------------------------ a class among the others

@dataclass(frozen=True)
class Images:
    """Those of one class: features float [N, D], `levels` float [N, P], groups str [N]."""

    features: np.ndarray
    levels: np.ndarray
    groups: np.ndarray

    def is_enough(self, neighbours: int) -> bool:
        """Whether they can say what is usual."""
        return len(self.groups) >= FEWEST and len(set(self.groups)) > neighbours


@dataclass(frozen=True)
class Judged:
    """Of every image of a class, [N] each: distance by features and its `quantile`; p by measure,
    and of all; the measure by which p is least; its nearest image: (class, place), of another
    group, by `label` of another class. usual: of the distance.
    """

    distance: np.ndarray
    quantile: np.ndarray
    p_of: dict[str, np.ndarray]
    p: np.ndarray
    measure: list[str]
    nearest: list[tuple[str, int]]
    usual: Usual


def judge(label: str, classes: dict[str, Images], neighbours: int = NEIGHBOURS) -> Judged:
    """Judge the images of a class, which are enough; `label` is measured where all others are.

    The p of all is the least of the measures', times their number (Bonferroni), at most 1: no more
    ordinary images than its value says are as strange in any respect.
    """
    own = classes[label]
    found = apart(own.features, own.groups, neighbours)
    spread = np.maximum(own.levels.std(0), 1.0)  # a grey level: else of a blank corner noise counts
    values = {FEATURES: found.distance,
              PIXELS: apart(own.levels / spread, own.groups, neighbours).distance}
    others = {name: apart_from(own.features, own.groups, each.features, each.groups, neighbours)
              for name, each in classes.items() if name != label and each.is_enough(neighbours)}
    if others and len(others) == len(classes) - 1:
        closest = np.argmin([each.distance for each in others.values()], axis=0)
        nearer = np.min([each.distance for each in others.values()], axis=0)
        values[LABEL] = found.distance / np.maximum(nearer, 1e-12)
    p_of = {name: usual(each).p(each) for name, each in values.items()}
    least = np.argmin(list(p_of.values()), axis=0)
    measure = [list(p_of)[i] for i in least]
    nearest = [(label, int(place)) for place in found.nearest]
    for i, name in enumerate(measure):
        if name == LABEL:
            other = list(others)[closest[i]]
            nearest[i] = other, int(others[other].nearest[i])
    return Judged(found.distance, quantile(found.distance, own.groups), p_of,
                  np.minimum(1, len(p_of) * np.min(list(p_of.values()), axis=0)), measure, nearest,
                  usual(found.distance))
