"""Which images may lie on which side of a split: by group, never by image.

A group is what must not lie on both sides: a patient, a slide, an original image with its
augmented copies. Groups that share a byte-identical image, or images that were found to be copies
of one another, are one group, whatever their names say. Whole groups then go to train, val and
test, or to the folds of a cross-validation.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from lungkit.run.faults import Fault

SPLITS = ("train", "val", "test")
SPLIT_SHARES = (0.6, 0.2, 0.2)
RESTARTS = 20          # ours: seeded orders of the groups tried, the best split kept
RESCUES = 200          # ours: random starts more where all of these left a cell empty
VISITS = 20_000        # ours: groups placed in all restarts together: a second or two
GOOD_ENOUGH = 1e-6     # ours: summed squared deviation of 0.1 % of a class; no restart mends that
EMPTY_PENALTY = 100.0  # ours: beyond any sum of squared deviations, so an empty cell never wins


# ------------------------------------------------------------------ groups

def merge_groups(groups: dict[str, str], links: Iterable[tuple[str, str]] = (), *,
                 hashes: dict[str, str] | None = None) -> tuple[dict[str, str], int]:
    """Join the groups of images that belong together; return them and how many were joined.

    groups: group by source name, from a CSV, a pattern, or each file its own.
    links: pairs of source names found to be copies of one another, rotated or re-compressed.
    hashes: SHA-256 by source name; equal ones are links too.
    A joined group has the first of its groups' names in sorted order, whatever the order of links.
    """
    from scipy.cluster.hierarchy import DisjointSet

    merged = DisjointSet(groups.values())
    for one, other in [*identical(hashes or {}), *links]:
        merged.merge(groups[one], groups[other])
    first = {group: min(subset) for subset in merged.subsets() for group in subset}
    return {name: first[group] for name, group in groups.items()}, len(merged) - merged.n_subsets


def identical(hashes: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of names of equal content: each repeated one with the first of its kind, by name."""
    first: dict[str, str] = {}
    return [(first[hashes[name]], name) for name in sorted(hashes)
            if first.setdefault(hashes[name], name) != name]


# ------------------------------------------------------------------ splits and folds

def split_groups(items: list[tuple[str, str]], seed: int,
                 fold: tuple[int, int] | None = None) -> dict[str, str]:
    """Give each group to a split, the same shares in every class.

    items: (group, label) of every image; their order does not matter.
    fold: None for one split near 60/20/20; (k, K) for fold k of K: it is test, the next one
    (after the last the first) val, the rest train. One seed makes one set of K folds, so that
    over k every image is tested exactly once and nothing is both tested and learnt.
    Raises Fault unless every class can have images in every split (in every fold).
    """
    if fold is None:
        part_of = partition(items, SPLIT_SHARES, seed, parts="split")
        return {group: SPLITS[part] for group, part in part_of.items()}
    number, count = fold
    part_of = partition(items, (1 / count,) * count, seed, parts="fold")
    role = {(number - 1) % count: "test", number % count: "val"}
    return {group: role.get(part, "train") for group, part in part_of.items()}


def partition(items: list[tuple[str, str]], shares: tuple[float, ...], seed: int, *,
              parts: str = "part") -> dict[str, int]:
    """Divide groups among len(shares) parts of those shares of every class: {group: part}.

    Largest group first into the part that lacks most, then moves of single groups while the
    summed squared deviation falls; the best of seeded restarts. Raises Fault as `split_groups`.
    """
    counts = Counter(items)
    labels = sorted({label for _, label in counts})
    names = sorted({group for group, _ in counts})
    few = {label: n for label, n in Counter(label for _, label in counts).items()
           if n < len(shares)}
    if few:
        found = ", ".join(f"{label!r} has {n}" for label, n in sorted(few.items()))
        raise Fault(f"every class needs at least {len(shares)} groups (patients, slides or "
                    f"original images), one for each {parts}, but {found}: add images of others"
                    + (", or take fewer folds" if parts == "fold" else ""))
    totals = Counter(label for _, label in items)
    column = {label: i for i, label in enumerate(labels)}
    rows = {name: [] for name in names}  # (class, images, share of the class), sparse
    for (group, label), n in sorted(counts.items()):
        rows[group].append((column[label], n, n / totals[label]))
    size = {name: sum(n for _, n, _ in row) for name, row in rows.items()}

    best, best_cost = None, float("inf")
    tries = max(1, min(RESTARTS, VISITS // len(names)))
    for restart in range(tries + max(0, min(RESCUES, 10 * VISITS // len(names)))):
        if best_cost < (GOOD_ENOUGH if restart < tries else EMPTY_PENALTY):
            break
        rng = random.Random(f"{seed}/{restart}")
        order = names[:]
        rng.shuffle(order)
        if restart < tries:
            order.sort(key=size.__getitem__, reverse=True)
        chosen, cost = _place(order, rows, shares, len(labels), rng if restart >= tries else None)
        if cost < best_cost - 1e-12:
            best, best_cost = chosen, cost
    if best_cost >= EMPTY_PENALTY:
        raise Fault(f"no way was found to give every class images in every {parts}: the "
                    f"{len(names)} groups span classes too much; add images of other patients")
    return {name: best[name] for name in names}


def _place(order: list[str], rows: dict[str, list], shares: tuple[float, ...], num_classes: int,
           rng: random.Random | None) -> tuple[dict[str, int], float]:
    """Place groups in this order, then move single ones; the parts and the cost reached.

    rng: None places each where most is lacking; a generator places them anywhere.
    """
    share = [[0.0] * num_classes for _ in shares]  # of a class, by part
    images = [[0] * num_classes for _ in shares]   # exact, so that empty is empty
    chosen: dict[str, int] = {}

    def put(name: str, part: int, sign: int) -> None:
        for label, n, part_of_class in rows[name]:
            share[part][label] += sign * part_of_class
            images[part][label] += sign * n

    def added(name: str, part: int, penalty: float) -> float:
        change = 0.0  # of the cost, were the group added to the part
        for label, _, s in rows[name]:
            change += s * (2 * (share[part][label] - shares[part]) + s)
            if not images[part][label]:
                change -= penalty
        return change

    parts = range(len(shares))
    for name in order:
        chosen[name] = (rng.randrange(len(shares)) if rng else
                        min(parts, key=lambda part: added(name, part, 0.0)))
        put(name, chosen[name], 1)
    moved = True
    while moved:
        moved = False
        for name in order:
            put(name, chosen[name], -1)
            costs = [added(name, part, EMPTY_PENALTY) for part in parts]
            better = min(parts, key=costs.__getitem__)
            if costs[better] < costs[chosen[name]] - 1e-12:
                chosen[name], moved = better, True
            put(name, chosen[name], 1)
    cost = sum((share[part][label] - shares[part]) ** 2 + EMPTY_PENALTY * (not images[part][label])
               for part in parts for label in range(num_classes))
    return chosen, cost
