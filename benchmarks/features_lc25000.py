#!/usr/bin/env python
"""Pretrained features with a linear head on LC25000, in five folds by source tile.

Reads   IMAGES, a folder of lung_aca, lung_n and lung_scc, and GROUPS, file_name,label,group
Prints  accuracy of the folds, the share of groups of which all images are right, seconds an image

Logistic regression on standardised features, no setting is chosen by the folds. --size makes the
images smaller first, as a dataset of that size would hold them.

    OMP_NUM_THREADS=1 python benchmarks/features_lc25000.py IMAGES GROUPS --per-group 2
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lungkit.learn.features import Extractor
from lungkit.run import cli

FOLDS, PENALTY = 5, 0.01  # scikit-learn's C: ours, of features that are as many as the images


def read(images: Path, groups: Path, per_group: int | None, size: int | None):
    """uint8 [N, S, S, 3], classes and groups [N]; the first `per_group` of each group."""
    from PIL import Image

    chosen, seen = [], {}
    with open(groups, newline="") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: row["file_name"]):
            seen[row["group"]] = seen.get(row["group"], 0) + 1
            if per_group is None or seen[row["group"]] <= per_group:
                chosen.append(row)
    pictures = []
    for row in chosen:
        picture = Image.open(images / row["file_name"]).convert("RGB")
        if size:
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(picture))
    return np.stack(pictures), *(np.array([row[name] for row in chosen])
                                 for name in ("label", "group"))


def fold_accuracies(features, labels, groups) -> list[float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    found = []
    for train, test in folds.split(features, labels, groups):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000))
        head.fit(features[train], labels[train])
        found.append(float((head.predict(features[test]) == labels[test]).mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("groups", type=Path)
    parser.add_argument("--per-group", type=cli.positive_int, metavar="N", help="images (all)")
    parser.add_argument("--size", type=cli.positive_int, metavar="PX", help="(as they are)")
    options = parser.parse_args()
    images, labels, groups = read(options.images, options.groups, options.per_group, options.size)
    extractor = Extractor()
    extractor.features(images[:1])
    start = time.perf_counter()
    features = extractor.features(images)
    per_image = (time.perf_counter() - start) / len(images)
    found = fold_accuracies(features, labels, groups)
    print(f"{len(images)} images of {images.shape[1]} px, {len(set(groups))} groups, "
          f"{len(set(labels))} classes: accuracy {np.mean(found):.4f}, folds "
          f"{min(found):.4f} to {max(found):.4f}; {per_image:.3f} s an image")


if __name__ == "__main__":
    main()
