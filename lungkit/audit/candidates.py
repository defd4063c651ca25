"""The index that proposes for each image the few with which it shares most features.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lungkit.audit.signature import MIRROR, NUM_FEATURES, Signature, unpack

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
BLOCK_IMAGES = BLOCK_FEATURES // NUM_FEATURES


def propose(signatures: list[Signature]) -> Iterator[tuple[int, int]]:
    """Yield pairs i < j that share most features, each once."""
    if sum(len(s.codes) for s in signatures) < 2:
        return
    index = Index(signatures)
    chosen: list[set] = []
    for start in range(0, len(signatures), BLOCK_IMAGES):
        best = index.ask(signatures[start:start + BLOCK_IMAGES], first=start)
        for i, picked in enumerate(best, start):
            chosen.append(set(picked))
            for j in picked:
                if j > i or i not in chosen[j]:
                    yield min(i, j), max(i, j)


def propose_between(asked: list[Signature], others: list[Signature], most: int = CANDIDATES
                    ) -> Iterator[tuple[int, int]]:
    """Yield (i, j) of each image asked about and the `most` of others that share most features."""
    if sum(len(s.codes) for s in others) < 2:
        return
    index = Index(others)
    for start in range(0, len(asked), BLOCK_IMAGES):
        for i, picked in enumerate(index.ask(asked[start:start + BLOCK_IMAGES]), start):
            yield from ((i, j) for j in picked[:most])


class Index:
    """The features of many images, by keys that alike features share."""

    def __init__(self, signatures: list[Signature]) -> None:
        """signatures: of two features or more in all."""
        self.owner = np.repeat(np.arange(len(signatures)), [len(s.codes) for s in signatures])
        self.angle = np.concatenate([s.places[:, 3] for s in signatures]).astype(np.float32)
        codes = np.concatenate([s.codes for s in signatures])
        bits = int(np.clip(np.ceil(np.log2(len(self.owner))) - LIST_BITS, 1, DIMENSIONS))
        self.mean, axes = _principal_axes(codes)
        rng = np.random.default_rng(0)
        self.turns = [
            axes @ np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)))[0][:, :bits]
            for _ in range(TABLES)]
        self.to_code = axes @ rng.standard_normal((DIMENSIONS, CODE_BITS))
        self.short = np.empty(len(self.owner), np.uint64)
        tables = [np.empty(len(self.owner), np.int32) for _ in self.turns]  # keys
        for i in range(0, len(self.owner), BLOCK_FEATURES):
            block = slice(i, i + BLOCK_FEATURES)
            levels = unpack(codes[block]) - self.mean
            self.short[block] = _signs(levels @ self.to_code)
            for keys, turn in zip(tables, self.turns):
                keys[block] = _signs(levels @ turn)
        self.orders = [np.argsort(keys, kind="stable").astype(np.int32) for keys in tables]
        self.tables = [keys[order] for keys, order in zip(tables, self.orders)]
        self.num_images = len(signatures)

    def ask(self, asked: list[Signature], *, first: int | None = None) -> list[list[int]]:
        """For each image asked about, up to BLOCK_IMAGES, those that share most features with it.

        first: number here of the first of them, which follow one another and are not found by
        themselves; None: they are others.
        """
        codes = np.concatenate([s.codes for s in asked])
        angle = np.concatenate([s.places[:, 3] for s in asked]).astype(np.float32)
        of = np.repeat(np.arange(len(asked)), [len(s.codes) for s in asked])
        found = [np.empty(0, np.int64)]
        for mirrored in (False, True):
            levels = unpack(codes)
            levels = (levels[:, MIRROR] if mirrored else levels) - self.mean
            code = _signs(levels @ self.to_code)
            for keys, order, turn in zip(self.tables, self.orders, self.turns):
                for query, hit in _look_up(levels @ turn, keys, order):
                    near = np.bitwise_count(code[query] ^ self.short[hit]) <= MOST_BITS_APART
                    if first is not None:
                        near &= of[query] + first != self.owner[hit]
                    query, hit = query[near], hit[near]
                    angles = self.angle[hit] - (-angle[query] if mirrored else angle[query])
                    bins = (angles % 360 * (ANGLE_BINS / 360)).astype(np.int64) % ANGLE_BINS
                    pair = of[query] * self.num_images + self.owner[hit]
                    found.append((pair * 2 + mirrored) * ANGLE_BINS + bins)
        return _most_votes(np.concatenate(found), len(asked), self.num_images)


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
