"""Find images that are copies of one another: turned, flipped, rescaled, cropped, re-compressed.

An augmented copy of a training image in the test split is a leak. `describe` makes a small
signature of one image (its strongest corners with their SIFT descriptors, and a thumbnail);
`link` groups the images of many signatures without comparing all with all:

1. an index proposes for each image the few with which it shares most features. Features hash to
   the signs of random projections (Charikar 2002), to as many bits as keep lists equally long at
   any number of images, and are asked for with their least sure bits turned as well (Lv et al.
   2007). Found ones count if they are close (Hamming embedding) and agree on the angle between
   the two images (weak geometric consistency; both Jegou et al. 2008, doi
   10.1007/978-3-540-88682-2_24). A mirrored image's descriptors are a permutation of the
   original's, so that flips cost one query more;
2. a proposed pair is registered: matched features vote for a similarity, refined to an affine map
   (copies made square from oblong originals are stretched too). It is a pair of copies if enough
   features agree and the thumbnails correlate where they overlap;
3. groups are the connected components of these pairs; large ones are asked about again among
   themselves, for many copies of one image are candidates of nothing else.

SIFT: Lowe 2004, IJCV 60:91; square roots of it: Arandjelovic & Zisserman 2012. Thresholds are
ours, set on half of the source tiles of LC25000 but for LEAST_OVERLAP and the index, whose faults
were found on all of it: no part of that set is untouched (benchmarks/sibling_groups.py).
An image with fewer than LEAST_INLIERS features (mostly air, out of focus) is linked to what has the
same thumbnail, turned by right angles or flipped; a blank one is never linked. Fields that overlap
by less than LEAST_OVERLAP (neighbours on a slide) are no copies; where fields overlap by more they
leak as copies do, and are linked.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lungkit.run import cli
from lungkit.run.workers import in_this_process

WORK_PX = 160           # ours: root of the area looked at; 112 is faster and finds fewer features
NUM_FEATURES = 96       # ours: the strongest; of 64 the index found 0.91 of true pairs, of 96 0.96
THUMB_PX = 48           # ours: a nucleus of an LC25000 tile is 2-3 px wide, and still correlates
CONTRAST = 0.02         # ours: half of OpenCV's default, so that pale tissue has features too
SPREAD = 50.0           # grey levels: standard deviation that every image is brought to
LEAST_SPREAD = 8.0      # grey levels: flatter images are not stretched up to show their noise
ROOT_STEP = 0.35 / 15   # of a square root of a normalised descriptor's bin, 4 bits of it kept

DIMENSIONS = 24         # ours: principal ones kept for the index, also the most bits of a key
LIST_BITS = 3           # ours: keys are as many bits shorter than the number of features
TABLES = 4              # ours: with LIST_BITS and PROBES, on half of LC25000: true pairs proposed
PROBES = 4              # ours: least sure bits turned, one at a time; 3, 1, 3 lose 2 % more
LONGEST_LIST = 100      # ours: of features under one key that are looked at
CODE_BITS = 64
MOST_BITS_APART = 16    # ours: of the 64; unrelated features differ by about 32
ANGLE_BINS = 16         # ours: 22.5 degrees each; two neighbouring bins are counted together
LEAST_VOTES = 3         # ours
CANDIDATES = 16         # ours: copies of one original are a group well before all pairs are found
BLOCK_FEATURES = 5_000  # ours: asked for at once; bounds memory

LIKENESS = 0.80         # ours: cosine of two descriptors that match
NEAR_PX = 15.0          # at WORK_PX: a match agrees with another's similarity; stretch needs room
NEAR_GROWTH = 0.7       # the same of their logarithms of scale: a factor 2
NEAR_COSINE = 0.8       # and of their angles: 37 degrees
TOLERANCES_PX = (10.0, 6.0, 4.0, 4.0)  # the same, of affine maps refined in turn
STRETCH = (0.31, 3.2)   # least and most of an affine map along any axis
ANISOTROPY = 2.0        # most: 4:3 originals made square are 1.33
LEAST_INLIERS = 8       # ours: 2,000 unrelated pairs of one class had 7 at most
LEAST_AGREEMENT = 0.7   # ours: 99.8 % of LC25000's copies have 0.86, strangers with one mark 0.64
BLOCKS = 4              # ours: a side; of 56 px in an image of 224
FLAT = 4.0              # ours: grey levels; blocks of less contrast (background) say nothing
CROWD = CANDIDATES // 2  # members of a group that leave few candidates for others
ASKED_AGAIN = 4         # ours: of a crowd
ENOUGH_FEATURES = 3 * LEAST_INLIERS  # a copy of an image of fewer than LEAST_INLIERS has fewer
PLAIN_AGREEMENT = 0.98  # ours: correlation of thumbnails
PLAIN_BLOCK = 256       # bounds memory
LEAST_OVERLAP = 0.4     # ours: copies on LC25000 share at least 0.65, its neighbours often 0.1-0.3

# OpenCV's descriptor is [row 4][column 4][direction 8] in the frame of its main direction: in a
# mirrored image rows are reversed and directions negated
MIRROR = np.arange(128).reshape(4, 4, 8)[::-1, :, -np.arange(8) % 8].ravel()


# ------------------------------------------------------------------ one image

@dataclass(frozen=True, eq=False)
class Signature:
    """What of an image finds its copies: under 10 kB, and pickles."""

    codes: np.ndarray   # uint8 [K, 64]: square roots of SIFT descriptors, 4 bits a bin
    places: np.ndarray  # float16 [K, 4]: x, y, diameter (px of the working size), degrees
    thumb: np.ndarray   # uint8 [THUMB_PX, THUMB_PX], grey
    size: tuple[int, int]  # width, height (px) of the working size


def describe(image: np.ndarray) -> Signature:
    """Signature of uint8 [H, W, 3] RGB or [H, W], of any size."""
    import cv2

    grey = image if image.ndim == 2 else cv2.cvtColor(
        np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = WORK_PX / np.sqrt(height * width)
    size = tuple(int(np.clip(round(side * scale), 16, 8 * WORK_PX)) for side in (width, height))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    thumb = cv2.resize(grey, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)
    even = grey.astype(np.float32)
    even = 128 + SPREAD / max(float(even.std()), LEAST_SPREAD) * (even - even.mean())
    even = np.uint8(np.clip(np.round(even), 0, 255))
    sift = cv2.SIFT_create(contrastThreshold=CONTRAST)
    points = sorted(sift.detect(even, None), key=lambda p: (-p.response, p.pt, p.angle))
    points, values = sift.compute(even, points[:NUM_FEATURES])
    if not points:
        values = np.zeros((0, 128), np.float32)
    root = np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-6))
    levels = np.uint8(np.clip(np.round(root / ROOT_STEP), 0, 15))
    places = np.array([(*p.pt, p.size, p.angle) for p in points], np.float16).reshape(-1, 4)
    return Signature(levels[:, ::2] << 4 | levels[:, 1::2], places, thumb, size)


def unpack(codes: np.ndarray) -> np.ndarray:
    """Descriptors float32 [K, 128], in levels 0-15, of uint8 [K, 64]."""
    levels = np.empty((len(codes), 128), np.float32)
    levels[:, ::2], levels[:, 1::2] = codes >> 4, codes & 15
    return levels


# ------------------------------------------------------------------ candidates

def propose(signatures: list[Signature]) -> Iterator[tuple[int, int]]:
    """Yield pairs i < j that share most features, each once."""
    owner = np.repeat(np.arange(len(signatures)), [len(s.codes) for s in signatures])
    if len(owner) < 2:
        return
    angle = np.concatenate([s.places[:, 3] for s in signatures]).astype(np.float32)
    codes = np.concatenate([s.codes for s in signatures])
    bits = int(np.clip(np.ceil(np.log2(len(owner))) - LIST_BITS, 1, DIMENSIONS))
    mean, axes = _principal_axes(codes)
    rng = np.random.default_rng(0)
    turns = [axes @ np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)))[0][:, :bits]
             for _ in range(TABLES)]
    to_code = axes @ rng.standard_normal((DIMENSIONS, CODE_BITS))
    short = np.empty(len(owner), np.uint64)
    tables = [np.empty(len(owner), np.int32) for _ in turns]  # keys
    blocks = [slice(i, i + BLOCK_FEATURES) for i in range(0, len(owner), BLOCK_FEATURES)]
    for block in blocks:
        levels = unpack(codes[block]) - mean
        short[block] = _signs(levels @ to_code)
        for keys, turn in zip(tables, turns):
            keys[block] = _signs(levels @ turn)
    orders = [np.argsort(keys, kind="stable").astype(np.int32) for keys in tables]
    tables = [keys[order] for keys, order in zip(tables, orders)]

    first = np.searchsorted(owner, np.arange(len(signatures) + 1))
    chosen: list[set] = []
    step = max(1, BLOCK_FEATURES // NUM_FEATURES)
    for start in range(0, len(signatures), step):
        stop = min(start + step, len(signatures))
        asked = np.arange(first[start], first[stop])
        found = []
        for mirrored in (False, True):
            levels = unpack(codes[asked])
            levels = (levels[:, MIRROR] if mirrored else levels) - mean
            code = _signs(levels @ to_code)
            for keys, order, turn in zip(tables, orders, turns):
                for query, hit in _look_up(levels @ turn, keys, order):
                    apart = np.bitwise_count(code[query] ^ short[hit])
                    near = (apart <= MOST_BITS_APART) & (owner[asked[query]] != owner[hit])
                    query, hit = asked[query[near]], hit[near]
                    angles = angle[hit] - (-angle[query] if mirrored else angle[query])
                    bins = (angles % 360 * (ANGLE_BINS / 360)).astype(np.int64) % ANGLE_BINS
                    pair = (owner[query] - start) * len(signatures) + owner[hit]
                    found.append((pair * 2 + mirrored) * ANGLE_BINS + bins)
        best = _most_votes(np.concatenate(found), stop - start, len(signatures))
        for i, picked in enumerate(best, start):
            chosen.append(set(picked))
            for j in picked:
                if j > i or i not in chosen[j]:
                    yield min(i, j), max(i, j)


def _principal_axes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean float32 [128] and axes [128, DIMENSIONS] of descriptors and their mirror images.

    The sums are of whole numbers, so that they do not depend on the order.
    """
    total, product = np.zeros(128), np.zeros((128, 128))
    for i in range(0, len(codes), BLOCK_FEATURES):
        levels = unpack(codes[i:i + BLOCK_FEATURES]).astype(np.float64)
        total += levels.sum(0)
        product += levels.T @ levels
    total += total[MIRROR]
    product += product[np.ix_(MIRROR, MIRROR)]
    mean = total / (2 * len(codes))
    values, vectors = np.linalg.eigh(product / (2 * len(codes)) - np.outer(mean, mean))
    axes = vectors / np.sqrt(np.maximum(values, 1e-3))  # of equal variance: bits of equal worth
    return mean.astype(np.float32), axes[:, -DIMENSIONS:].astype(np.float32)


def _signs(values: np.ndarray) -> np.ndarray:
    """Signs of [N, B] as the bits of a number, [N]."""
    return (values > 0) @ (np.uint64(1) << np.arange(values.shape[1], dtype=np.uint64))


def _look_up(values: np.ndarray, keys: np.ndarray, order: np.ndarray) -> Iterator:
    """Yield (rows of values, features found) for the keys of float [N, B] and their neighbours."""
    key = _signs(values).astype(np.int32)
    unsure = np.argpartition(np.abs(values), min(PROBES, values.shape[1] - 1), axis=1)
    probes = [key] + [key ^ (1 << unsure[:, p]).astype(np.int32)
                      for p in range(min(PROBES, values.shape[1]))]
    for probe in probes:
        low = np.searchsorted(keys, probe, "left")
        count = np.searchsorted(keys, probe, "right") - low
        long = np.flatnonzero(count > LONGEST_LIST)  # another part of it for every feature
        low[long] += (long * 2654435761 % 2**32) % (count[long] - LONGEST_LIST + 1)
        count[long] = LONGEST_LIST
        query = np.repeat(np.arange(len(probe)), count)
        place = np.arange(len(query)) + np.repeat(low - (np.cumsum(count) - count), count)
        yield query, order[place]


def _most_votes(votes: np.ndarray, num_queries: int, num_images: int) -> list[list]:
    """The CANDIDATES images of most votes for each query: in the same hand, near one angle."""
    best: list[list[int]] = [[] for _ in range(num_queries)]
    if not len(votes):
        return best
    vote, count = np.unique(votes, return_counts=True)
    beside = vote // ANGLE_BINS * ANGLE_BINS + (vote + 1) % ANGLE_BINS
    place = np.minimum(np.searchsorted(vote, beside), len(vote) - 1)
    count = count + np.where(vote[place] == beside, count[place], 0)
    pair = vote // (2 * ANGLE_BINS)
    first = np.flatnonzero(np.r_[True, np.diff(pair) > 0])
    pair, count = pair[first], np.maximum.reduceat(count, first)
    pair, count = pair[count >= LEAST_VOTES], count[count >= LEAST_VOTES]
    for i in np.lexsort((pair, -count)).tolist():
        row = best[pair[i] // num_images]
        if len(row) < CANDIDATES:
            row.append(int(pair[i] % num_images))
    return best


# ------------------------------------------------------------------ registration

@dataclass(frozen=True)
class Registration:
    """How well one image maps onto another."""

    inliers: int       # features that agree, in different places
    agreement: float   # correlation of the thumbnails where they overlap: -1 to 1, the least of
    #                    the whole's and the median block's, which a mark on both does not raise
    overlap: float     # share of the image that shows less tissue which the other shows too

    @property
    def are_copies(self) -> bool:
        return (self.inliers >= LEAST_INLIERS and self.agreement >= LEAST_AGREEMENT
                and self.overlap >= LEAST_OVERLAP)


UNRELATED = Registration(0, 0.0, 0.0)


def register(one: Signature, other: Signature) -> Registration:
    """Map one image, or its mirror image, onto another and measure how well they agree."""
    if min(len(one.codes), len(other.codes)) < LEAST_INLIERS:
        return UNRELATED
    a, b = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
            for part in (unpack(one.codes), unpack(other.codes)))
    places = one.places.astype(np.float64), other.places.astype(np.float64)
    fits = []
    for mirrored in (False, True):
        likeness = (a[:, MIRROR] if mirrored else a) @ b.T
        best, row = likeness.argmax(1), np.arange(len(a))
        rows = np.flatnonzero((likeness.argmax(0)[best] == row) & (likeness[row, best] > LIKENESS))
        fits.append(_fit(places[0][rows], places[1][best[rows]], mirrored))
    inliers, affine = max(fits, key=lambda fit: fit[0])
    if inliers < LEAST_INLIERS:
        return Registration(inliers, 0.0, 0.0)
    return Registration(inliers, *_compare(one, other, affine))


def _fit(p: np.ndarray, q: np.ndarray, mirrored: bool) -> tuple[int, np.ndarray | None]:
    """Affine map [2, 3] of most of the places p [M, 4] onto q, and how many of them agree."""
    if len(p) < LEAST_INLIERS:
        return 0, None
    sign = -1 if mirrored else 1
    start, end = p[:, 0] + sign * 1j * p[:, 1], q[:, 0] + 1j * q[:, 1]
    turn = np.radians(q[:, 3] - sign * p[:, 3])
    spin = q[:, 2] / p[:, 2] * np.exp(1j * turn)  # the similarity that each match proposes
    error = np.multiply.outer(spin, start) - end + (end - spin * start)[:, None]
    growth, unit = np.log(q[:, 2] / p[:, 2]), spin / np.abs(spin)
    near = ((error.real ** 2 + error.imag ** 2 < NEAR_PX ** 2)
            & (np.abs(growth - growth[:, None]) < NEAR_GROWTH)
            & (np.multiply.outer(unit, unit.conj()).real > NEAR_COSINE))
    support = near.sum(1)
    inside = near[support.argmax()]
    source, target = np.c_[p[:, :2], np.ones(len(p))], q[:, :2]
    for tolerance in TOLERANCES_PX:
        if inside.sum() < LEAST_INLIERS:
            return int(inside.sum()), None
        x = source[inside]
        try:
            affine = np.linalg.solve(x.T @ x, x.T @ target[inside])
        except np.linalg.LinAlgError:  # all in one line
            return 0, None
        inside = ((source @ affine - target) ** 2).sum(1) < tolerance ** 2
    most, least = np.linalg.svd(affine[:2], compute_uv=False)
    if (least < STRETCH[0] or most > STRETCH[1] or most > ANISOTROPY * least
            or np.linalg.det(affine[:2]) * sign < 0):
        return 0, None
    distinct = [len({*map(tuple, np.round(side[inside, :2] / 2).tolist())}) for side in (p, q)]
    return min(distinct), affine.T


def _compare(one: Signature, other: Signature, affine: np.ndarray) -> tuple[float, float]:
    """Agreement and overlap of one, mapped by affine [2, 3], with the other."""
    import cv2

    step_one, step_other = np.array(one.size) / THUMB_PX, np.array(other.size) / THUMB_PX
    warp = np.empty((2, 3))  # of thumbnails; their pixel centres are at (t + 0.5) step - 0.5
    warp[:, :2] = affine[:, :2] * step_one / step_other[:, None]
    origin = affine[:, :2] @ (step_one / 2 - 0.5) + affine[:, 2]
    warp[:, 2] = (origin + 0.5) / step_other - 0.5
    shape = (THUMB_PX, THUMB_PX)
    mask = cv2.warpAffine(np.full(shape, 255, np.uint8), warp, shape) == 255
    overlap = min(1.0, float(mask.mean()) / min(1.0, abs(float(np.linalg.det(warp[:, :2])))))
    if not mask.any():
        return 0.0, 0.0
    a = cv2.warpAffine(one.thumb, warp, shape).astype(np.float64)
    b = other.thumb.astype(np.float64)
    whole = _correlate(a[mask][None], b[mask][None], np.ones((1, int(mask.sum()))))[0]
    blocks = _correlate(*(values.reshape(BLOCKS, -1, BLOCKS, THUMB_PX // BLOCKS).swapaxes(1, 2)
                          .reshape(BLOCKS * BLOCKS, -1) for values in (a, b, mask * 1.0)))
    return min(float(whole), float(np.median(blocks)) if len(blocks) else -1.0), overlap


def _correlate(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Correlations of the rows of a and b, [N, P], where the mask is 1, of rows that are no blank.
    """
    count = mask.sum(1, keepdims=True)
    a, b = ((values - (values * mask).sum(1, keepdims=True) / np.maximum(count, 1)) * mask
            for values in (a, b))
    variance = (a * a).sum(1), (b * b).sum(1)
    worth = ((count[:, 0] >= mask.shape[1] / 2)
             & (np.maximum(*variance) > FLAT ** 2 * count[:, 0]))
    product = (a * b).sum(1)[worth]
    return product / np.sqrt(np.maximum((variance[0] * variance[1])[worth], 1e-6))


def _register(item: tuple) -> Registration:
    return register(*item)


# ------------------------------------------------------------------ groups

class Groups:
    """Which of `count` images belong together (disjoint sets, Galler & Fischer 1964)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def of(self, i: int) -> int:
        """The smallest index of the group of image i."""
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self.of(i), self.of(j)))
        self._parent[high] = low


def find_pairs(signatures: list[Signature], mapped: Callable = in_this_process, *,
               joined: Callable[[int, int], bool] = lambda i, j: False,
               ) -> Iterator[tuple[int, int, Registration]]:
    """Yield registered pairs of copies (i, j, how well), i < j; not every pair of a group.

    mapped: what `workers.mapper` yields. joined: pairs for which it is true need no registration.
    """
    # in an order of their content, so that nothing depends on the order given
    content = sorted(range(len(signatures)), key=lambda i: _digest(signatures[i]))
    waiting: deque[tuple[int, int]] = deque()  # pairs whose registration has not come back

    def items() -> Iterable[tuple]:
        for a, b in propose([signatures[i] for i in content]):
            i, j = content[a], content[b]
            if not joined(i, j):
                waiting.append((min(i, j), max(i, j)))
                yield signatures[i], signatures[j]

    # far ahead: while this process asks the index about a block, the others have enough to do
    for result in mapped(_register, items(), chunk=64, ahead=32):
        cli.check_stop()
        pair = waiting.popleft()
        if result.are_copies:
            yield *pair, result


def link(signatures: list[Signature], mapped: Callable = in_this_process) -> list[int]:
    """Group number of each image: the smallest index of the copies it belongs with.

    Images with one signature are looked for once. Many copies of one image fill one another's
    CANDIDATES: so, in turn, some of every large group are asked about among these alone, until
    nothing joins any more.
    """
    groups = Groups(len(signatures))
    first: dict[bytes, int] = {}
    for i, signature in enumerate(signatures):
        if len(signature.codes) >= LEAST_INLIERS:
            groups.join(first.setdefault(_digest(signature), i), i)
    asked = different = [i for _, i in sorted(first.items())]
    while len(asked) > 1:
        before = len({groups.of(i) for i in asked})
        for i, j, _ in find_pairs([signatures[i] for i in asked], mapped, joined=lambda i, j:
                                  groups.of(asked[i]) == groups.of(asked[j])):
            groups.join(asked[i], asked[j])
        if len({groups.of(i) for i in asked}) == before:
            break
        members: dict[int, list[int]] = {}
        for i in different:
            members.setdefault(groups.of(i), []).append(i)
        crowds = [found for found in members.values() if len(found) > CROWD]
        asked = [i for found in crowds for i in found[:ASKED_AGAIN]] if len(crowds) > 1 else []
    for i, j in plain_copies(signatures):
        groups.join(i, j)
    return [groups.of(i) for i in range(len(signatures))]


def _digest(signature: Signature) -> bytes:
    parts = signature.codes, signature.places, signature.thumb
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


# ------------------------------------------------------------------ images without features

def plain_copies(signatures: list[Signature]) -> list[tuple[int, int]]:
    """Pairs i < j that look the same, turned by right angles or flipped, one of few features.

    An image mostly of air has too few features to be registered, and its copy may have one more;
    but their thumbnails correlate. Blank ones are left alone: they all look the same.
    """
    few = [i for i, s in enumerate(signatures)
           if len(s.codes) < ENOUGH_FEATURES and s.thumb.std() > FLAT]
    if len(few) < 2:
        return []
    thumbs = np.stack([signatures[i].thumb for i in few]).astype(np.float32)
    thumbs -= thumbs.mean((1, 2), keepdims=True)
    thumbs /= np.linalg.norm(thumbs, axis=(1, 2), keepdims=True)
    lacking = np.array([len(signatures[i].codes) < LEAST_INLIERS for i in few])
    flat = thumbs.reshape(len(few), -1)
    pairs = set()
    for start in range(0, len(few), PLAIN_BLOCK):
        block = thumbs[start:start + PLAIN_BLOCK]
        for turn in range(4):
            turned = np.rot90(block, turn, (1, 2))
            for one in (turned, turned[:, :, ::-1]):
                alike = np.ascontiguousarray(one).reshape(len(block), -1) @ flat.T > PLAIN_AGREEMENT
                rows, columns = np.nonzero(alike)
                rows += start
                kept = (rows != columns) & (lacking[rows] | lacking[columns])
                pairs |= {(few[min(pair)], few[max(pair)])
                          for pair in zip(rows[kept].tolist(), columns[kept].tolist())}
    return sorted(pairs)
