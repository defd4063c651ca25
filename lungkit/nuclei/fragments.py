"""Join the fragments that watershed cuts nuclei into.

`lungkit.nuclei.detect` cuts a mask of nuclei at every slight neck, so that touching nuclei are
parted, and with them many a nucleus that is long, notched or unevenly stained. Here touching
fragments are joined again, pair by pair, the likeliest first, as in region merging for nuclei (Lin
et al., A hybrid 3D watershed algorithm incorporating gradient cues and object models, Cytometry A
56(1), 2003). How likely two fragments are one nucleus is told by a network of 15 measured
features, two hidden layers of 16, and a logistic output; a deep neck, or a round union without a
neck, settles it alone. Its weights are in assets/nuclei_fragments.json;
`lungkit.tools.fit_fragments` fits them to simulated tissue, stretched, enlarged, sharpened and
blurred far beyond what that tissue varies by itself, so that shape decides rather than the
simulation's habits.

Feeds lungkit.nuclei.detect.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np

WEIGHTS_PATH = Path(__file__).resolve().parents[2] / "assets" / "nuclei_fragments.json"
FEATURES = (
    "union_solidity",  # area over that of the convex hull
    "union_ellipticity",  # area over that of the ellipse of the same second moments
    "union_log_elongation", "union_log_area_um2", "smaller_log_area_um2", "log_area_ratio",
    "saddle",  # height where they meet over the lower of the two peaks
    "log_neck",  # length of the common border over the root of the smaller area
    "stain_step",  # difference of the mean stains over that of the union
    "border_stain",  # of the border over that of the paler of the two, less 1
    "stain_between",  # share of the union's variance of stain that lies between the two
    "solidity_loss", "ellipticity_loss",  # of the worse of the two, less that of the union
    "distance_um",  # of the centroids
    "stain_variation")  # of the union: deviation over mean
JOIN_LOG_ODDS = 0.3  # ours: on seeds 60-89 of simulated tissue F1 is within 0.01 from 0 to 0.6
LEAST_SADDLE = 0.6  # ours: a deeper neck parts two nuclei, whatever their shape; F1 is as without
# Ours, after coarse pixels: what is round and has no neck is one nucleus; F1 is as without.
ROUND_SADDLE, ROUND_FILL, ROUND_ELONGATION = 0.9, 0.94, 1.3
AREA, X, Y, XX, YY, XY, STAIN, STAIN2 = range(8)  # columns of the sums over a region's pixels
LENGTH, BORDER, SADDLE = range(3)  # columns of the edges: pixel sides, sum of stain, largest height


def join_fragments(labels: np.ndarray, height: np.ndarray, stain: np.ndarray, px_per_um: float,
                   threshold: float = JOIN_LOG_ODDS) -> np.ndarray:
    """Join touching regions of int32 `labels` [H, W], 0 background, that are one nucleus.

    height: float32 [H, W], what the watershed flooded. stain: float32 [H, W], above 0 in nuclei.
    threshold: log-odds from which two regions are one. Returns labels with some numbers gone.
    """
    sums, peaks, hulls = measure_regions(labels, height, stain)
    pairs, edges = find_touching(labels, height, stain)
    score = np.full(len(pairs), np.nan)
    final = np.arange(len(sums))
    while len(pairs):
        stale = np.isnan(score)
        score[stale] = log_odds(features(pairs[stale], edges[stale], sums, peaks, hulls, px_per_um))
        best = np.full(len(sums), -np.inf)
        np.maximum.at(best, pairs.ravel(), score.repeat(2))
        chosen = (score >= threshold) & (score >= best[pairs].max(axis=1))
        if not chosen.any():
            break
        target = join_pairs(pairs[chosen], sums, peaks, hulls)
        final = target[final]
        pairs, edges, score = rewire(pairs, edges, score, target)
    return final.astype(np.int32)[labels]


def features(pairs: np.ndarray, edges: np.ndarray, sums: np.ndarray, peaks: np.ndarray,
             hulls: list, px_per_um: float) -> np.ndarray:
    """FEATURES of pairs of regions int [P, 2], float64 [P, 15]."""
    import cv2

    first, second = pairs.T
    one, two = sums[first], sums[second]
    union = one + two
    solidity = sums[:, AREA] / np.maximum(hull_areas(hulls), 1)
    ellipticity, _ = _ellipse(sums)
    whole, elongation = _ellipse(union)
    joint = [cv2.convexHull(np.concatenate((hulls[i], hulls[j])))[:, 0] for i, j in pairs.tolist()]
    solid = union[:, AREA] / hull_areas(joint)
    small = np.minimum(one[:, AREA], two[:, AREA])
    mean = union[:, STAIN] / union[:, AREA]
    variance = np.maximum(union[:, STAIN2] / union[:, AREA] - mean**2, 1e-8)
    stains = np.stack([one[:, STAIN] / one[:, AREA], two[:, STAIN] / two[:, AREA]])
    step = np.abs(stains[0] - stains[1])
    gap = np.hypot(*(one[:, X:XX] / one[:, [AREA]] - two[:, X:XX] / two[:, [AREA]]).T)
    um2 = px_per_um**2
    return np.stack([
        solid, whole, np.log(elongation), np.log(union[:, AREA] / um2), np.log(small / um2),
        np.log((union[:, AREA] - small) / small),
        edges[:, SADDLE] / np.minimum(peaks[first], peaks[second]),
        np.log(edges[:, LENGTH] / np.sqrt(small)), step / mean,
        edges[:, BORDER] / edges[:, LENGTH] / stains.min(axis=0) - 1,
        one[:, AREA] * two[:, AREA] / union[:, AREA]**2 * step**2 / variance,
        np.minimum(solidity[first], solidity[second]) - solid,
        np.minimum(ellipticity[first], ellipticity[second]) - whole,
        gap / px_per_um, np.sqrt(variance) / mean], axis=1)


def log_odds(measured: np.ndarray) -> np.ndarray:
    """Log-odds [P] that a pair with `features` [P, 15] is one nucleus."""
    mean, scale, *layers = _weights()
    values = (measured - mean) / scale
    for weight, bias in layers[:-1]:
        values = np.maximum(values @ weight + bias, 0)
    weight, bias = layers[-1]
    odds = (values @ weight + bias)[:, 0]
    of = dict(zip(FEATURES, measured.T, strict=True))
    odds[of["saddle"] < LEAST_SADDLE] = -np.inf
    odds[(of["saddle"] > ROUND_SADDLE) & (of["union_log_elongation"] < np.log(ROUND_ELONGATION))
         & (np.minimum(of["union_solidity"], of["union_ellipticity"]) > ROUND_FILL)] = np.inf
    return odds


@functools.cache
def _weights() -> tuple:
    """(mean [15], scale [15], (weight, bias) of each layer)."""
    stored = json.loads(WEIGHTS_PATH.read_text())
    if tuple(stored["features"]) != FEATURES:
        raise ValueError(f"{WEIGHTS_PATH} holds weights for other features: fit it anew with "
                         "python -m lungkit.tools.fit_fragments")
    layers = [tuple(np.array(stored[f"{name}_{k}"]) for name in ("weight", "bias"))
              for k in range(3)]
    return np.array(stored["mean"]), np.array(stored["scale"]), *layers


# ------------------------------------------------------------------ regions

def hulls_of(labels: np.ndarray) -> list[np.ndarray]:
    """Vertices int32 [V, 2] (x, y) of the convex hull of each of regions 0..max; empty for 0."""
    import cv2

    inner = labels[1:-1, 1:-1]
    edge = labels > 0
    edge[1:-1, 1:-1] &= ((inner != labels[:-2, 1:-1]) | (inner != labels[2:, 1:-1])
                         | (inner != labels[1:-1, :-2]) | (inner != labels[1:-1, 2:]))
    ys, xs = np.nonzero(edge)
    ids = labels[ys, xs]
    order = np.argsort(ids, kind="stable")
    points = np.stack([xs[order], ys[order]], axis=1).astype(np.int32)
    ends = np.cumsum(np.bincount(ids, minlength=int(labels.max()) + 1)).tolist()
    return [points[:0]] + [cv2.convexHull(points[start:end])[:, 0] if end > start else points[:0]
                           for start, end in itertools.pairwise(ends)]


def hull_areas(hulls: list[np.ndarray]) -> np.ndarray:
    """Pixels within each hull, exact by Pick's theorem, float64 [N]; 0 for an empty one."""
    sizes = np.array([len(hull) for hull in hulls])
    if not sizes.any():
        return np.zeros(len(hulls))
    here = np.concatenate(hulls).astype(np.int64)
    ends = np.cumsum(sizes)
    following = np.arange(1, len(here) + 1)
    following[ends[sizes > 0] - 1] = (ends - sizes)[sizes > 0]
    there = here[following]
    twice = here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]
    steps = np.abs(there - here)
    owner = np.repeat(np.arange(len(hulls)), sizes)
    area = np.abs(np.bincount(owner, twice, len(hulls))) / 2
    border = np.bincount(owner, np.gcd(steps[:, 0], steps[:, 1]), len(hulls))
    return np.where(sizes > 0, area + border / 2 + 1, 0)


def measure_regions(labels: np.ndarray, height: np.ndarray,
             stain: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
    """Sums float64 [max + 1, 8], greatest height [max + 1] and hulls of regions 0..max."""
    count = int(labels.max()) + 1
    inside = np.flatnonzero(labels)
    ys, xs = np.divmod(inside, labels.shape[1])
    ids, dark = labels.ravel()[inside], stain.ravel()[inside].astype(np.float64)
    x, y = xs.astype(np.float64), ys.astype(np.float64)
    sums = np.stack([np.bincount(ids, values, count) for values in (
        np.ones(len(ids)), x, y, x * x, y * y, x * y, dark, dark * dark)], axis=1)
    peaks = np.zeros(count)
    np.maximum.at(peaks, ids, height.ravel()[inside])
    return sums, np.maximum(peaks, 1e-6), hulls_of(labels)


def _ellipse(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area over that of the ellipse of the same second moments, and its length over its width."""
    area = np.maximum(sums[:, AREA], 1)
    x, y = sums[:, X] / area, sums[:, Y] / area
    xx = sums[:, XX] / area - x * x + 1 / 12  # a pixel is a square, not a point
    yy = sums[:, YY] / area - y * y + 1 / 12
    xy = sums[:, XY] / area - x * y
    product = np.maximum(xx * yy - xy * xy, 1e-6)
    large = (xx + yy) / 2 + np.sqrt(np.maximum((xx + yy) ** 2 / 4 - product, 0))
    return area / (4 * np.pi * np.sqrt(product)), np.sqrt(large * large / product)


def find_touching(labels: np.ndarray, height: np.ndarray,
              stain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of regions with a common border int [P, 2], lower first, and edges float64 [P, 3]."""
    count = int(labels.max()) + 1
    keys, darks, heights = [], [], []
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        one, two = labels[a], labels[b]
        touch = (one != two) & (one > 0) & (two > 0)
        one, two = one[touch].astype(np.int64), two[touch]
        keys.append(np.minimum(one, two) * count + np.maximum(one, two))
        darks.append((stain[a][touch] + stain[b][touch]) / 2)
        heights.append(np.minimum(height[a][touch], height[b][touch]))
    sides = np.stack([np.ones(sum(map(len, keys))), np.concatenate(darks),
                      np.concatenate(heights)], axis=1)
    keys, owner = np.unique(np.concatenate(keys), return_inverse=True)
    return np.stack([keys // count, keys % count], axis=1), _gather(sides, owner, len(keys))


def _gather(edges: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """Edges [count, 3] of the groups that `owner` names: lengths and stains add, heights do not."""
    saddle = np.zeros(count)
    np.maximum.at(saddle, owner, edges[:, SADDLE])
    return np.stack([np.bincount(owner, edges[:, LENGTH], count),
                     np.bincount(owner, edges[:, BORDER], count), saddle], axis=1)


def join_pairs(chosen: np.ndarray, sums: np.ndarray, peaks: np.ndarray, hulls: list) -> np.ndarray:
    """Add the second of each chosen pair to the first, in place; return where each region went."""
    import cv2

    target = np.arange(len(sums))
    for first, second in chosen.tolist():
        if target[first] != first or target[second] != second:
            continue  # a tie: this round has already moved one of the two
        target[second] = first
        sums[first] += sums[second]
        peaks[first] = max(peaks[first], peaks[second])
        hulls[first] = cv2.convexHull(np.concatenate((hulls[first], hulls[second])))[:, 0]
    return target


def rewire(pairs: np.ndarray, edges: np.ndarray, score: np.ndarray,
            target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs, edges and scores after a round of joins; nan where a score must be found anew."""
    moved = np.zeros(len(target), bool)
    moved[target != np.arange(len(target))] = True
    moved[target[moved]] = True
    score = np.where(moved[pairs].any(axis=1), np.nan, score)
    ends = np.sort(target[pairs], axis=1)
    keep = ends[:, 0] != ends[:, 1]
    keys, owner = np.unique(ends[keep, 0] * len(target) + ends[keep, 1], return_inverse=True)
    after = np.zeros(len(keys))
    after[owner] = score[keep]  # pairs that fell together are nan, all of them
    pairs = np.stack([keys // len(target), keys % len(target)], axis=1)
    return pairs, _gather(edges[keep], owner, len(keys)), after
