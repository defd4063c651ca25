"""Which images may lie on which side of a split: by group, never by image.

A group is what must not lie on both sides: a patient, a slide, an original image with its
augmented copies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lungkit.cli import Fault

SPLITS = ("train", "val", "test")
SPLIT_SHARES = (0.6, 0.2, 0.2)
RESTARTS = 20          # ours: seeded orders of the groups tried, the best split kept
EMPTY_PENALTY = 100.0  # ours: beyond any sum of squared deviations, so an empty cell never wins
FEW_GROUPS = 10        # ours: below it a test split holds one or two patients
CONFOUNDED = 0.2       # ours: how far above guessing a file's format may predict its class


def merge_identical(groups: dict[str, str], hashes: dict[str, str]) -> tuple[dict[str, str], int]:
    """Join groups that share a byte-identical image; return them and how many were joined."""
    parent = {group: group for group in groups.values()}

    def find(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first: dict[str, str] = {}
    for name in sorted(groups):
        a, b = sorted((find(groups[name]), find(first.setdefault(hashes[name], groups[name]))))
        parent[b] = a
    joined = sum(find(group) != group for group in parent)
    return {name: find(group) for name, group in groups.items()}, joined


def split_groups(items: list[tuple[str, str]], seed: int) -> dict[str, str]:
    """Give each group to a split, near 60/20/20 in every class at once.

    items: (group, label) of every image. Largest group first into the split that lacks most, then
    moves of single groups while the summed squared deviation falls; best of seeded restarts.
    Raises Fault unless every class can have images in every split.
    """
    import numpy as np

    names = sorted({group for group, _ in items})
    labels = sorted({label for _, label in items})
    few = [(label, n) for label, n in Counter(label for _, label in set(items)).items()
           if n < len(SPLITS)]
    if few:
        found = ", ".join(f"{label!r} has {n}" for label, n in sorted(few))
        raise Fault(f"every class needs at least {len(SPLITS)} groups (patients, slides or "
                    f"original images), one for each split, but {found}: add images of others")
    table = np.zeros((len(names), len(labels)))
    row = {name: i for i, name in enumerate(names)}
    for group, label in items:
        table[row[group], labels.index(label)] += 1
    shares = table / table.sum(0)
    target = np.array(SPLIT_SHARES)[:, None]

    def cost(filled) -> float:
        return float(((filled - target) ** 2).sum() + EMPTY_PENALTY * (filled < 1e-12).sum())

    best, best_cost = None, np.inf
    for restart in range(max(1, min(RESTARTS, 20_000 // len(names)))):
        rng = np.random.default_rng([seed, restart])
        order = np.lexsort((rng.random(len(names)), -table.sum(1)))
        filled, chosen = np.zeros((3, len(labels))), np.zeros(len(names), int)
        for group in order:
            chosen[group] = np.argmax((target - filled) @ shares[group])
            filled[chosen[group]] += shares[group]
        moved = True
        while moved:
            moved = False
            for group in order:
                filled[chosen[group]] -= shares[group]
                costs = []
                for split in range(3):
                    filled[split] += shares[group]
                    costs.append(cost(filled))
                    filled[split] -= shares[group]
                better = int(np.argmin(costs))
                if costs[better] < costs[chosen[group]] - 1e-12:
                    chosen[group], moved = better, True
                filled[chosen[group]] += shares[group]
        if cost(filled) < best_cost - 1e-12:
            best, best_cost = chosen, cost(filled)
    if best_cost >= EMPTY_PENALTY:
        raise Fault(f"no split of the {len(names)} groups gives every class images in train, val "
                    "and test: groups span classes too much; add images of other patients")
    return {name: SPLITS[split] for name, split in zip(names, best)}


@dataclass(frozen=True)
class Specimen:
    """What decides about one image's split, and what could give its class away."""

    label: str
    group: str
    sha256: str
    look: tuple  # width, height, file type, colour mode: nothing of the tissue


def warn_of_confounding(specimens: list[Specimen], groups_given: bool) -> list[str]:
    """What in the data could make an accuracy mean less than it seems, as sentences."""
    warnings = []
    if not groups_given:
        warnings.append("No group ids were given, so each file is its own group: images of one "
                        "patient, or augmented copies, may lie on both sides of a split and "
                        "inflate every accuracy.")
    totals = Counter(s.label for s in specimens)
    for label, total in sorted(totals.items()):
        sizes = Counter(s.group for s in specimens if s.label == label)
        group, most = sizes.most_common(1)[0]
        if most > total / 2:
            warnings.append(f"{most} of {total} images of {label!r} come from one group "
                            f"({group!r}): telling this class may mean telling this specimen.")
        if len(sizes) < FEW_GROUPS:
            warnings.append(f"{label!r} has {len(sizes)} groups only: its test split says little "
                            "about the next patient.")
    labels_of: dict[str, set] = {}
    for s in specimens:
        labels_of.setdefault(s.sha256, set()).add(s.label)
    twice = sum(len(labels) > 1 for labels in labels_of.values())
    if twice:
        warnings.append(f"{twice} images lie, byte for byte, in more than one class folder: "
                        "one of their labels is wrong.")
    looks = Counter((s.look, s.label) for s in specimens)
    right = 0  # leave one out: is the commonest class among the others of this look the right one?
    for s in specimens:
        others = {label: looks[s.look, label] - (label == s.label) for label in sorted(totals)}
        right += others[s.label] > 0 and max(others, key=others.__getitem__) == s.label
    told, guess = right / len(specimens), max(totals.values()) / len(specimens)
    if told > guess + CONFOUNDED:
        warnings.append("Width, height, file type and colour mode alone tell the class of "
                        f"{told:.0%} of the images (guessing: {guess:.0%}): the classes were "
                        "acquired differently, and a network may learn that instead of tissue.")
    return warnings
