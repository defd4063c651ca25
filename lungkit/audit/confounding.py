"""What besides tissue could tell the classes apart: groups, sources, statistics without a shape.

A network is said to have learnt morphology when it may have learnt the scanner, the hospital, the
compression or one patient's stain (Howard et al. 2021, "The impact of site-specific digital
histology signatures on deep learning model accuracy and bias", Nat Commun 12:4423; Schmitt et al.
2021, "Hidden variables in deep learning digital pathology and their potential to cause batch
effects", J Med Internet Res 23:e23436). So before any training we ask how far one gets without
looking at a single nucleus:
the nearest neighbours in mean colour, brightness, contrast, file size, image size and file type
vote for an image's class, the neighbours being images of other groups only.

The score is balanced accuracy, the mean over classes of the share told rightly: always naming the
majority class, or guessing, scores 1 / number of classes, however unequal the classes are. Its
interval resamples groups, its p value shuffles labels among groups: images are not independent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from lungkit.data.splits import SPLITS, partition
from lungkit.run.faults import Fault
from lungkit.run.workers import in_this_process

NEIGHBOURS = 25      # ours: on LC25000 5 are worse, 45 alike; logistic, quadratic rules no better
FOLDS = 5
PERMUTATIONS = 99    # so that p can be as low as 0.01
RESAMPLES = 400      # ours: of groups, for a 95 % interval


@dataclass(frozen=True)
class Specimen:
    """One original image: its class and group, and what could give its class away.

    mean_rgb, brightness (mean) and contrast (standard deviation of grey) are 0..255 and measured
    on the image as it came; mean_rgb None: it has no colour. after: (red, green, blue, brightness,
    contrast) after stain normalisation, None where it was not measured. traits: further families of
    numbers {name: values, as many for every image}; named: further sources {kind: name}.
    """

    label: str
    group: str
    source_name: str  # relative to the folder of the class folders
    sha256: str
    look: tuple  # width, height, file suffix, colour mode
    file_bytes: int
    mean_rgb: tuple[float, float, float] | None
    brightness: float
    contrast: float
    after: tuple[float, float, float, float, float] | None = None
    tiles: int = 1  # that it gives to the dataset: what groups and sources are counted by
    traits: dict[str, tuple[float, ...]] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------ groups and sources

def source_folder(specimen: Specimen) -> str:
    """The folder right below the class folder, '' where the image lies in the class folder."""
    parts = specimen.source_name.split("/")
    return parts[1] if len(parts) > 2 else ""


def source_prefix(specimen: Specimen) -> str:
    """What a file's name starts with, in front of any number; '' where that spells the class.

    A TCGA barcode names the hospital (tissue source site) in its second field: TCGA-05-....
    """
    name = specimen.source_name.split("/")[-1].rpartition(".")[0]
    site = re.match(r"TCGA-\w\w(?=-)", name)
    prefix = site[0] if site else re.match(r"[^\d]*", name)[0].strip("-_. (")
    folded = [re.sub(r"[\W_]", "", text).casefold() for text in (prefix, specimen.label)]
    return "" if folded[0] == folded[1] else prefix


def source_look(specimen: Specimen) -> str:
    """Width, height, file type and colour mode, as one word."""
    width, height, suffix, mode = specimen.look
    return f"{width} x {height} {suffix} {mode}"


SOURCES: dict[str, Callable[[Specimen], str]] = {
    "folder": source_folder, "file name prefix": source_prefix, "look": source_look}


def _groups(specimens: list[Specimen], split_of: dict[str, str]) -> dict:
    """Per class: images, groups, effective groups, the largest group and its share, by split."""
    found = {}
    for label in sorted({s.label for s in specimens}):
        sizes: Counter = Counter()
        for s in specimens:
            sizes[s.group] += s.tiles * (s.label == label)
        sizes = +sizes
        images = sum(sizes.values())
        largest = min(sizes, key=lambda group: (-sizes[group], group))
        by_split = Counter(split_of[group] for group in sizes)
        found[label] = {
            "images": images, "groups": len(sizes),
            # inverse Simpson index: as many groups of one size would be as diverse
            "effective_groups": round(images**2 / sum(n * n for n in sizes.values()), 1),
            "largest_group": largest, "largest_images": sizes[largest],
            "groups_by_split": {split: by_split[split] for split in SPLITS}}
    return found


def _sources(specimens: list[Specimen]) -> dict:
    """Per kind of source and class: the commonest one, its share of the class and of the others."""
    found = {}
    labels = sorted({s.label for s in specimens})
    named = {kind: (lambda s, kind=kind: s.named.get(kind, ""))
             for kind in sorted({kind for s in specimens for kind in s.named})}
    for kind, source_of in (SOURCES | named).items():
        sources, totals = Counter(), Counter()
        for s in specimens:
            sources[s.label, source_of(s)] += s.tiles
            totals[s.label] += s.tiles
        found[kind] = {}
        for label in labels:
            own = {name: n for (of, name), n in sources.items() if of == label}
            first = min(own, key=lambda name: (-own[name], name))
            others = sum(sources[other, first] for other in labels if other != label)
            rest = sum(totals.values()) - totals[label]
            found[kind][label] = {"sources": len(own), "commonest": first,
                                  "share": round(own[first] / totals[label], 4),
                                  "share_of_others": round(others / rest, 4) if rest else 0.0}
    return found


def _identical(specimens: list[Specimen]) -> list[list[str]]:
    """Names of byte-identical images that lie in more than one class folder."""
    same: dict[str, list[Specimen]] = {}
    for s in specimens:
        same.setdefault(s.sha256, []).append(s)
    return sorted(sorted(s.source_name for s in found) for found in same.values()
                  if len({s.label for s in found}) > 1)


# ------------------------------------------------------------------ trivial statistics

def families(specimens: list[Specimen]) -> dict[str, list[list[float]]]:
    """Columns of numbers per image, by family of statistics."""
    looks = [s.look for s in specimens]
    kinds = sorted({look[2:] for look in looks}, key=str)
    found = {
        **({"mean colour": [list(s.mean_rgb) for s in specimens]}
           if all(s.mean_rgb is not None for s in specimens) else {}),
        "brightness and contrast": [[s.brightness, s.contrast] for s in specimens],
        "file size": [[_log(s.file_bytes)] for s in specimens],
        "image size": [[_log(width), _log(height)] for width, height, *_ in looks],
        "file type": [[float(look[2:] == kind) for kind in kinds] for look in looks]}
    found["all together"] = [[value for part in row for value in part]
                             for row in zip(*found.values())]
    if all(s.after is not None for s in specimens):
        found["mean colour after normalisation"] = [list(s.after[:3]) for s in specimens]
        found["brightness and contrast after normalisation"] = [list(s.after[3:])
                                                                for s in specimens]
    return found | {name: [list(s.traits[name]) for s in specimens] for name in specimens[0].traits}


def _log(value: float) -> float:
    import math

    return math.log(max(value, 1))


def _fold_of(specimens: list[Specimen], split_of: dict[str, str]) -> list[int]:
    """A fold for each image, whole groups in one, every class in each; else the split itself."""
    fewest = min(Counter(label for _, label in {(s.group, s.label) for s in specimens}).values())
    try:
        part_of = partition([(s.group, s.label) for s in specimens],
                            (1 / min(FOLDS, fewest),) * min(FOLDS, fewest), seed=0)
    except Fault:  # groups that span classes in an awkward way
        part_of = {group: SPLITS.index(split) for group, split in split_of.items()}
    return [part_of[s.group] for s in specimens]


def nearest(values, fold, rng):
    """Indices int [N, k] of the images nearest to each one among those of other folds.

    values: float [N, D], standardised here; fold: int [N]. Ties are broken at random.
    """
    import numpy as np
    from scipy.spatial import cKDTree

    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)
    values = values + rng.normal(0, 1e-6, values.shape)
    others = [np.flatnonzero(fold != number) for number in range(fold.max() + 1)]
    k = min(NEIGHBOURS, *(max(1, round(len(rest) ** 0.5)) for rest in others))
    found = np.empty((len(values), k), int)
    for number, rest in enumerate(others):
        at = fold == number
        _, index = cKDTree(values[rest]).query(values[at], k)
        found[at] = rest[index.reshape(-1, k)]
    return found


def vote(neighbours, label, num_classes: int):
    """The class most neighbours have, int [N]; one of a rare class counts for more."""
    import numpy as np

    weight = 1 / np.maximum(np.bincount(label, minlength=num_classes), 1)
    votes = label[neighbours]
    return np.stack([(votes == c).sum(1) * weight[c] for c in range(num_classes)]).argmax(0)


def balanced_accuracy(told, label, num_classes: int) -> float:
    """Mean over the classes of the share told rightly."""
    import numpy as np

    right = np.bincount(label[told == label], minlength=num_classes)
    return float((right / np.maximum(np.bincount(label, minlength=num_classes), 1)).mean())


def _interval(right, label, group, num_classes: int, rng) -> list[float]:
    """95 % interval of the balanced accuracy, from resampled groups."""
    import numpy as np

    count = np.zeros((2, group.max() + 1, num_classes))
    np.add.at(count, (0, group, label), right)
    np.add.at(count, (1, group, label), 1)
    num_groups = count.shape[1]
    drawn = rng.integers(0, num_groups, (RESAMPLES, num_groups))
    drawn += num_groups * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    hit, total = times @ count[0], times @ count[1]
    whole = (total > 0).all(1)
    scores = (hit[whole] / total[whole]).mean(1)
    return [round(float(x), 4) for x in np.percentile(scores, [2.5, 97.5])]


def tell_class(values, label, group, fold, seed: int = 0) -> dict:
    """How well the columns `values` tell the class, with its interval and p value.

    values float [N, D]; label, group, fold int [N]; a group lies in one fold. p: the share of
    shuffles that score as well, labels being shuffled among the (group, class) blocks of images.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    num_classes = int(label.max()) + 1
    if not (values.std(0) > 1e-9).any():
        return {"balanced_accuracy": round(1 / num_classes, 4), "constant": True}
    neighbours = nearest(values, fold, rng)
    told = vote(neighbours, label, num_classes)
    score = balanced_accuracy(told, label, num_classes)
    interval = _interval(told == label, label, group, num_classes, rng)
    _, first, block = np.unique(group * num_classes + label, return_index=True,
                                return_inverse=True)
    shuffled = []
    for _ in range(PERMUTATIONS):
        other = rng.permutation(label[first])[block]
        shuffled.append(balanced_accuracy(vote(neighbours, other, num_classes), other,
                                          num_classes))
    beaten = sum(value >= score - 1e-12 for value in shuffled)
    return {"balanced_accuracy": round(score, 4), "interval_95": interval,
            "p": round((1 + beaten) / (1 + PERMUTATIONS), 4), "constant": False}


def _trivial(specimens: list[Specimen], split_of: dict[str, str], mapped: Callable) -> dict:
    """`tell_class` by every family of statistics."""
    import numpy as np

    label, group = (np.unique([getattr(s, name) for s in specimens], return_inverse=True)[1]
                    for name in ("label", "group"))
    fold = np.array(_fold_of(specimens, split_of))
    columns = {name: np.array(rows, float) for name, rows in families(specimens).items()}
    told = mapped(partial(tell_class, label=label, group=group, fold=fold), columns.values())
    return dict(zip(columns, told))


# ------------------------------------------------------------------ the report

def report(specimens: list[Specimen], split_of: dict[str, str], groups_given: str,
           mapped: Callable = in_this_process) -> dict:
    """The confounding report, JSON-able, the same for the same images.

    split_of: split by group. groups_given: how groups came about, words joined by '+': 'csv' or
    'regex' (the user knows them), 'auto' (copies found), 'none'. mapped: what `workers.mapper`
    yields, for the families of statistics.
    """
    labels = sorted({s.label for s in specimens})
    told = _trivial(specimens, split_of, mapped)
    return {
        "groups_given": groups_given, "images": len(specimens),
        "tiles": sum(s.tiles for s in specimens),
        "groups": len({s.group for s in specimens}),
        "classes": _groups(specimens, split_of), "sources": _sources(specimens),
        "identical_with_other_label": _identical(specimens),
        "trivial": {"guessing": round(1 / len(labels), 4), "score": "balanced accuracy",
                    "method": f"{NEIGHBOURS} nearest images of other groups vote",
                    "permutations": PERMUTATIONS, "families": told}}
