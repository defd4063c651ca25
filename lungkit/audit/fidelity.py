"""How like real images other images are, by features and groups alone. No image is seen here.

fid                 Frechet distance of two normal distributions: Heusel et al. 2017,
                    arXiv:1706.08500; biased upwards by 1 / n, so only of use beside a floor at
                    the same n
kid                 unbiased squared maximum mean discrepancy under the kernel (x y / d + 1)^3:
                    Binkowski et al. 2018, arXiv:1801.01401; the mean over subsets
precision, recall   shares of the one set among the neighbours of the other: Kynkaanniemi et al.
                    2019, arXiv:1904.06991
density, coverage   the same, robust against outliers of the one and the other: Naeem et al. 2020,
                    arXiv:2002.09797

All are of inner products alone, so that a part of the images costs no more than an index.

membership          whether the images that a generator was trained on can be told from other real
                    ones, by how near the nearest generated image lies: the AUROC. Hilprecht et al.
                    2019, "Monte Carlo and reconstruction membership inference attacks against
                    generative models", Proc Priv Enhancing Technol 2019(4); Chen et al. 2020,
                    arXiv:1909.03935
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 5        # Naeem et al. 2020
SUBSETS = 50          # of KID: ours, the mean moves less than a tenth of the deviation
HALVES = 200          # of groups: ours
FEWEST_GROUPS = 4     # on each side, for an interval
FEWEST = 3 * NEIGHBOURS  # images on each side: ours; below, neighbours are the whole set
DISTANCES, SHARES = ("fid", "kid"), ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Likeness:
    """What two sets are to one another: by name a value, and where they have one an interval.

    deviation: of KID over its subsets.
    """

    values: dict[str, float]
    deviation: float
    intervals: dict[str, tuple[float, float]] | None


class Compared:
    """The inner products of a reference's and a candidate's features, float [N, D] and [M, D]."""

    def __init__(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        both = np.concatenate([reference, candidate]).astype(np.float64)
        self.products, self.width, self.num_reference = both @ both.T, both.shape[1], len(reference)

    def parts(self, some: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        """Products within the reference images `some`, between, and within the candidate's."""
        others = others + self.num_reference
        return (self.products[np.ix_(some, some)], self.products[np.ix_(some, others)],
                self.products[np.ix_(others, others)])

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices of all reference images and of all the candidate's."""
        return (np.arange(self.num_reference),
                np.arange(len(self.products) - self.num_reference))


def frechet(within: np.ndarray, between: np.ndarray, others: np.ndarray) -> float:
    """FID of `Compared.parts`; its trace of a root is the nuclear norm of the cross products."""
    means = within.mean() + others.mean() - 2 * between.mean()
    traces = sum((np.trace(each) - len(each) * each.mean()) / (len(each) - 1)
                 for each in (within, others))
    centred = between - between.mean(0) - between.mean(1)[:, None] + between.mean()
    scale = np.sqrt((len(within) - 1.0) * (len(others) - 1))
    return float(means + traces - 2 * np.linalg.svd(centred / scale, compute_uv=False).sum())


def discrepancy(within: np.ndarray, between: np.ndarray, others: np.ndarray, width: int) -> float:
    """The squared MMD of `Compared.parts`, without bias: it may be below 0."""
    own = 0.0
    for each in (within, others):
        kernel = (each / width + 1) ** 3
        own += (kernel.sum() - np.trace(kernel)) / (len(each) * (len(each) - 1))
    return float(own - 2 * ((between / width + 1) ** 3).mean())


def kernel_distance(compared: Compared, some: np.ndarray, others: np.ndarray, size: int,
                    subsets: int, rng) -> tuple[float, float]:
    """KID, mean and deviation over `subsets` of `size` images of each side.

    rng: anything with numpy's `choice`; the reference's images are drawn first.
    """
    found = [discrepancy(*compared.parts(rng.choice(some, size, replace=False),
                                         rng.choice(others, size, replace=False)),
                         compared.width) for _ in range(subsets)]
    return float(np.mean(found)), float(np.std(found))


def overlaps(within: np.ndarray, between: np.ndarray, others: np.ndarray,
             neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Precision, recall, density and coverage of `Compared.parts`, by squared distances."""
    lengths, other_lengths = np.diag(within), np.diag(others)
    apart = lengths[:, None] + other_lengths - 2 * between
    radii, other_radii = (
        np.sort(size[:, None] + size - 2 * each, axis=1)[:, neighbours]  # the nearest is itself
        for size, each in ((lengths, within), (other_lengths, others)))
    inside = apart < radii[:, None]
    return {"precision": float(inside.any(0).mean()),
            "recall": float((apart < other_radii).any(1).mean()),
            "density": float(inside.sum(0).mean() / neighbours),
            "coverage": float(inside.any(1).mean())}


def measure(reference: np.ndarray, candidate: np.ndarray,
            reference_groups: np.ndarray | None = None,
            candidate_groups: np.ndarray | None = None, seed: int = 0) -> Likeness:
    """All six of features float [N, D] and [M, D]; with groups also 95 % intervals, or None.

    groups: str [N] and [M], what of each side belongs together. An interval is of halves of the
    groups of both sides, drawn without replacement: drawn so, a half varies about the whole as the
    whole about the truth (Shao and Wu 1989), and no image has itself for a neighbour, as in a
    bootstrap. Halves are biased where n matters: only their spread is taken.
    """
    compared = Compared(reference, candidate)
    rng = np.random.default_rng(seed)
    everything = compared.all()
    size = min(len(reference), len(candidate)) // 2
    kid, deviation = kernel_distance(compared, *everything, size, SUBSETS, rng)
    parts = compared.parts(*everything)
    values = {"fid": frechet(*parts), "kid": kid, **overlaps(*parts)}
    intervals = None
    if reference_groups is not None and candidate_groups is not None:
        intervals = spread(compared, values, reference_groups, candidate_groups, rng=rng)
    return Likeness(values, deviation, intervals)


def spread(compared: Compared, values: dict[str, float], *groups_of_sides: np.ndarray,
           rng) -> dict[str, tuple[float, float]] | None:
    """The intervals of `measure`; None where a side has too few groups."""
    indexed = [np.unique(groups, return_inverse=True)[1] for groups in groups_of_sides]
    counts = [int(index.max()) + 1 for index in indexed]
    if min(counts) < FEWEST_GROUPS:
        return None
    drawn = {name: [] for name in values}
    for _ in range(HALVES):
        sides = [np.flatnonzero(np.isin(index, rng.permutation(count)[:count // 2]))
                 for index, count in zip(indexed, counts)]
        if min(map(len, sides)) <= NEIGHBOURS:
            continue
        parts = compared.parts(*sides)
        for name, value in {"fid": frechet(*parts), "kid": discrepancy(*parts, compared.width),
                            **overlaps(*parts)}.items():
            drawn[name].append(value)
    if len(drawn["fid"]) < HALVES / 2:
        return None
    bounds = {"fid": (0, np.inf), "kid": (-np.inf, np.inf), "density": (0, np.inf)}
    found = {}
    for name, each in drawn.items():
        low, high = np.percentile(np.array(each) - np.mean(each), [2.5, 97.5])
        found[name] = tuple(float(end) for end in np.clip(
            [values[name] + low, values[name] + high], *bounds.get(name, (0, 1))))
    return found


def resampled(groups: np.ndarray, seed: int, draws: int = 2000
              ) -> tuple[np.ndarray, np.ndarray] | None:
    """How often each of G groups is drawn, int [draws, G], and the group of each image, int [N].

    None below FEWEST_GROUPS.
    """
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        return None
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), draws)
    return drawn, index


def ends_of(values: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


def nearest(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The distance of each of real's features [N, D] to the nearest generated [M, D], [N]."""
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    squares = ((real**2).sum(1)[:, None] + (generated**2).sum(1) - 2 * real @ generated.T)
    return np.sqrt(np.maximum(squares, 0).min(1))


def membership(members: dict[str, tuple[np.ndarray, np.ndarray]],
               others: dict[str, tuple[np.ndarray, np.ndarray]], seed: int = 0) -> dict:
    """{auroc, low, high, num_members, num_others}: whether members lie nearer than others.

    members, others: {class: (distances float [N], groups str [N])}, compared within classes. 0.5:
    they cannot be told apart; 1: each member is nearer. Both sides are resampled by group; no ends
    below FEWEST_GROUPS.
    """
    sides = [(np.concatenate([side[label][0] for label in side]),
              np.concatenate([side[label][1] for label in side]),
              np.concatenate([[label] * len(side[label][0]) for label in side]))
             for side in (members, others)]
    (near, groups, labels), (far, other_groups, other_labels) = sides
    pairs = (labels[:, None] == other_labels).astype(float)
    wins = pairs * ((near[:, None] < far) + 0.5 * (near[:, None] == far))
    said = {"auroc": float(wins.sum() / pairs.sum()), "low": None, "high": None,
            "num_members": len(near), "num_others": len(far)}
    drawn = [resampled(each, seed + k) for k, each in enumerate((groups, other_groups))]
    if any(each is None for each in drawn):
        return said
    (times, index), (other_times, other_index) = drawn
    sums = []
    for each in (wins, pairs):
        by_group = np.zeros((times.shape[1], other_times.shape[1]))
        np.add.at(by_group, (index[:, None], other_index[None]), each)
        sums.append(np.einsum("dg,gh,dh->d", times, by_group, other_times, optimize=True))
    return {**said, **ends_of(np.divide(*sums, out=np.full(len(times), np.nan),
                                        where=sums[1] > 0))}


def mean_of(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict[str, float | None]:
    """{value, low, high} of the mean of bool or float [N] without its NaN, resampled by group.

    value is None where nothing is left, low and high are below FEWEST_GROUPS.
    """
    known = np.isfinite(values)
    values, groups = values[known], groups[known]
    names, index = np.unique(groups, return_inverse=True)
    said = {"value": float(values.mean()) if len(values) else None, "low": None, "high": None}
    if len(names) < FEWEST_GROUPS:
        return said
    sums, sizes = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(names), (2000, len(names)))
    return {**said, **ends_of(sums[drawn].sum(1) / sizes[drawn].sum(1))}
