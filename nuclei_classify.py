#!/usr/bin/env python
"""Predict the class from what was measured alone: classical baselines, rows of the comparison.

Reads   REAL, the real dataset, and FEATURES. Of tissue that is the dataset made by voronoi_seg.py
        with its image_features.csv (number, density, size, shape, stain and spacing of an image's
        nuclei). Of CT it is REAL itself: nodule sizes of its metadata.csv, its images and masks.
Writes  RESULTS/<baseline>/replicate_000/repeat_0000.json   the record that cnn_classify.py writes,
                                                            of kind "baseline"
        RESULTS/<baseline>/replicate_000/repeat_0000.npz    probabilities of every test image
Prints  mean, standard deviation and number of the accuracies; with --benign, how well tumour is
        told from benign.

Baselines: nuclei, of tissue; size, of CT, the logarithms of the nodule's diameter and area, the
ruler that every CNN has to beat; and nodule, these with its attenuation, texture and outline. An
image without a nodule has no size, and where a class is of such images CT has no baseline.

Logistic regression (regularised) and random forests (Breiman, Mach Learn 45, 2001) compete: the
one with the best accuracy in cross-validation by group within REAL's train split is fitted to that
split. Neither val nor test has a part in it: val is only reported, as for the CNNs, and the test
split is the CNNs' own, so accuracy_own and accuracy_real are one number.

Repeat i draws the groups (patients, slides, tiles) of the train split with replacement, class by
class, from seed SEED + i: the group bootstrap (Field and Welsh, J R Stat Soc B 69, 2007). A
logistic regression has no seed: without a draw every repeat would be one and the same training,
and counting it N times would make p-values too small. The draw costs accuracy, for it holds 63 %
of the groups; accuracy_all_groups says what the chosen model scores when fitted to all of them.

Running the same command again resumes: complete repeats are kept, missing ones are made. Any
number of processes may run the same command at once; they share the repeats between them.
Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped, run it again.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from lungkit.audit import leaks
from lungkit.ct import features as ct
from lungkit.data import metrics, result
from lungkit.data.dataset import Dataset, read_manifest
from lungkit.data.repeats import (
    Repeats,
    add_options,
    open_both,
    open_repeats,
    report as report_repeats,
)
from lungkit.data.result import BASELINE
from lungkit.nuclei.features import IMAGES_FILE, read_image_features
from lungkit.run import cli, seeds
from lungkit.run.faults import BadOptions, Fault, check_stop
from lungkit.run.progress import say
from lungkit.run.provenance import provenance

NUCLEI = "nuclei"
MODELS = {NUCLEI: "nuclear features", "size": "nodule size", "nodule": "nodule size and texture"}
RECIPE = 1   # raise it when what follows changes: results of two recipes must not be mixed
FOLDS = 5    # usual; fewer where a class has fewer groups
MOST_DRAWS = 1000  # ours: draws with two groups of every class are rarer only where none is
TREES = 200  # ours: 100 to 400 differ by less than the forest's seed does
# in this order, so that of equally accurate ones the simplest is taken: ours, the usual range
CANDIDATES = [("logistic", {"C": 0.01}), ("logistic", {"C": 0.1}), ("logistic", {"C": 1.0}),
              ("logistic", {"C": 10.0}), ("forest", {"min_samples_leaf": 5}),
              ("forest", {"min_samples_leaf": 1})]


# ------------------------------------------------------------------ the draw and the folds

def draw_groups(groups: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each image is drawn when whole groups are, with replacement: int64 [N].

    Among the groups of a class (that of most of its images; classes of one such group together)
    as many are drawn as there are. Drawn anew until two different groups of every class are, for
    less cannot be cross-validated. Raises Fault where that cannot be.
    """
    names, member = np.unique(groups, return_inverse=True)
    votes = np.zeros((len(names), int(labels.max()) + 1), int)
    np.add.at(votes, (member, labels), 1)
    holds = votes[:, np.unique(labels)] > 0
    strata = [np.flatnonzero(votes.argmax(axis=1) == label) for label in range(votes.shape[1])]
    single = np.array([own[0] for own in strata if len(own) == 1], int)
    strata = [own for own in [*strata, single] if len(own) > 1 or own is single and len(own)]
    for _ in range(MOST_DRAWS):
        times = np.zeros(len(names), np.int64)
        for own in strata:
            times += np.bincount(rng.choice(own, len(own)), minlength=len(names))
        if (holds[times > 0].sum(axis=0) >= 2).all():
            return times[member]
    raise Fault(f"{MOST_DRAWS} draws of the {len(names)} groups of the train split held no two of "
                "every class: add images of other patients")


def split_folds(groups: np.ndarray, labels: np.ndarray, seed: int) -> list[tuple]:
    """Up to FOLDS pairs of index arrays (fit, check): no group is in both, classes are even.

    Every fit holds every class. Of few groups that span classes there may be no such folds; then
    each group is left out in turn, which always gives them, for each class has two groups.
    """
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    fewest = min(len(set(groups[labels == label])) for label in np.unique(labels))
    folds = StratifiedGroupKFold(max(2, min(FOLDS, fewest)), shuffle=True, random_state=seed)
    every = len(np.unique(labels))
    return [pair for pair in folds.split(labels, labels, groups)
            if len(np.unique(labels[pair[0]])) == every] \
        or list(LeaveOneGroupOut().split(labels, labels, groups))


# ------------------------------------------------------------------ models

def build(family: str, settings: dict, seed: int):
    """An unfitted model that fills gaps (an image without nuclei) by the training median."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(max_iter=2000, **settings) if family == "logistic" else \
        RandomForestClassifier(TREES, random_state=seed, n_jobs=1, **settings)
    return Pipeline([("fill", SimpleImputer(strategy="median", keep_empty_features=True)),
                     ("scale", StandardScaler()), ("model", model)])


def fit(candidate: tuple[str, dict], values: np.ndarray, labels: np.ndarray, times: np.ndarray,
        seed: int):
    """Fit a candidate to values float64 [N, F], each image counted `times` [N]."""
    check_stop()
    return build(*candidate, seed).fit(values, labels, model__sample_weight=times)


def choose(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, times: np.ndarray,
           seed: int) -> tuple[int, list[float]]:
    """The place of the best of CANDIDATES, and the accuracy of each, cross-validated by group."""
    folds, accuracies = split_folds(groups, labels, seed), []
    for candidate in CANDIDATES:
        right = np.zeros(len(labels))
        for inside, outside in folds:
            model = fit(candidate, values[inside], labels[inside], times[inside], seed)
            right[outside] = model.predict(values[outside]) == labels[outside]
        checked = np.concatenate([outside for _, outside in folds])
        accuracies.append(float(np.average(right[checked], weights=times[checked])))
    return int(np.argmax(accuracies)), accuracies


# ------------------------------------------------------------------ one repeat

class Bench:
    """The features of all splits, and what all repeats share."""

    def __init__(self, data: Dataset, real: Dataset, baseline: str, benign: str | None) -> None:
        self.data, self.real, self.benign = data, real, benign
        self.checked: dict | None = None  # what leaks.require says of real, the features' origin
        self.warnings = list(dict.fromkeys([*data.warnings, *real.warnings]))
        table = read_image_features(data.path, data.manifest) if baseline == NUCLEI else \
            ct.read_features(data, baseline)
        self.rows = {split: data.select(split) for split in ("train", "val", "test")}
        if [(row.file_name, row.label) for row in self.rows["test"]] != \
                [(row.file_name, row.label) for row in real.select("test")]:
            raise Fault(f"{data.path} has other test images than {real.path}: the baseline is "
                        "tested on the images that the CNNs are; make it again from there")
        lacking = [row.file_name for row in data.rows if row.file_name not in table]
        if lacking:
            raise Fault(f"{data.path / IMAGES_FILE} lacks {len(lacking)} images, the first is "
                        f"{lacking[0]}: make the dataset again with --overwrite")
        self.values = {split: np.array([table[row.file_name] for row in rows])
                       for split, rows in self.rows.items()}
        self.labels = {split: np.array([data.classes.index(row.label) for row in rows])
                       for split, rows in self.rows.items()}
        # without group ids every image is its own group
        self.groups = np.array([row.group or row.file_name for row in self.rows["train"]])
        for number, label in enumerate(data.classes):
            found = len(set(self.groups[self.labels["train"] == number]))
            if found < 2:
                raise Fault(f"class {label} has {found} group in the train split of "
                            f"{data.path}: cross-validation by group needs two or more")

    def run_repeat(self, identity: dict, directory: Path) -> None:
        """Draw, choose, fit, test and record the repeat that `identity` describes."""
        start = time.monotonic()
        rng = seeds.repeat_draws(identity["dataset"], identity["seed"], identity["replicate"])
        values, labels = self.values["train"], self.labels["train"]
        times = draw_groups(self.groups, labels, rng)
        seed = int(rng.integers(2**31))
        drawn = times > 0
        best, accuracies = choose(values[drawn], labels[drawn], self.groups[drawn], times[drawn],
                                  seed)
        model = fit(CANDIDATES[best], values[drawn], labels[drawn], times[drawn], seed)
        on_all = fit(CANDIDATES[best], values, labels, np.ones(len(labels)), seed)
        probabilities = model.predict_proba(self.values["test"]).astype(np.float32)
        test = self.labels["test"]
        tested = (probabilities, test, self.rows["test"])
        scores, arrays = metrics.score_classes({"own": tested, "real": tested}, self.data.classes,
                                               ordinal=self.real.is_ordinal)
        said = np.clip(model.predict_proba(values[drawn])[np.arange(drawn.sum()), labels[drawn]],
                       1e-12, 1)
        family, settings = CANDIDATES[best]
        record = {
            **identity, "kind": BASELINE, **scores, "accuracy_val": self.accuracy(model, "val"),
            "accuracy_all_groups": self.accuracy(on_all, "test"),
            "accuracy_cross_validated": accuracies[best],
            "chosen": {"family": family, **settings},
            "candidates": [{"family": name, **options, "accuracy": accuracy} for
                           (name, options), accuracy in zip(CANDIDATES, accuracies)],
            "train_loss": float(np.average(-np.log(said), weights=times[drawn])),
            "num_train_images": int(times.sum()), "num_pool_images": len(labels),
            "num_distinct_images": int(drawn.sum()),
            "num_groups": len(set(self.groups)), "warnings": self.warnings,
            "trained_on": self.data.trained_on(), "leaks": self.checked,
            "groups_given": self.real.groups_given, "device": "cpu", "versions": versions()}
        if self.benign is not None:
            record["malignancy"] = malignancy(
                probabilities, test, self.data.classes.index(self.benign)) | {"benign": self.benign}
        result.write_record(directory, record, arrays, {
            "elapsed_sec": round(time.monotonic() - start, 3), "threads": 1})

    def accuracy(self, model, split: str) -> float:
        return float((model.predict(self.values[split]) == self.labels[split]).mean())


def malignancy(probabilities: np.ndarray, labels: np.ndarray, benign: int) -> dict[str, float]:
    """How well tumour (any class but `benign`) is told from it: probabilities float [N, C].

    An image is called tumour where the probability of benign is below one half.
    """
    tumour, score = labels != benign, 1 - probabilities[:, benign].astype(np.float64)
    found = score > 0.5
    sensitivity = float(found[tumour].mean())
    specificity = float((~found[~tumour]).mean())
    return {"balanced_accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity, "specificity": specificity,
            "auroc": metrics.auroc(score, tumour)}


def versions() -> dict[str, str]:
    from importlib import metadata

    return {**provenance()["versions"], "scikit-learn": metadata.version("scikit-learn")}


# ------------------------------------------------------------------ the stage

def run(*, features: Path, real: Path, results: Path, repeats: range, replicate: int,
        baseline: str | None, benign: str | None, seed: int, overwrite: bool,
        dry_run: bool) -> None:
    manifest, data = read_manifest(real), read_manifest(features)
    baseline = choose_baseline(baseline, data["modality"])
    benign = benign_class(benign, manifest)
    identities = identify(features, data, manifest, repeats, baseline=baseline,
                          replicate=replicate, seed=seed, benign=benign)
    asked = open_repeats(results, identities, kind=BASELINE, overwrite=overwrite)
    if asked.are_complete:
        if leaks.are_lacking(asked.records(), results):  # of before they were looked for
            leaks.require([open_both(real, real, results)], results, dry_run=dry_run)
        return report(asked, "already complete")
    bench = Bench(*open_both(features, real, results), baseline, benign)
    bench.checked, = leaks.require([(bench.real, bench.real)], results, dry_run=dry_run)
    say(f"{baseline}: {bench.values['train'].shape[1]} features of {len(bench.groups)} images in "
        f"{len(set(bench.groups))} groups, {len(CANDIDATES)} candidates")
    asked.say_plan()
    if dry_run:
        return None
    asked.make(lambda identity: bench.run_repeat(identity, asked.directory))
    return report(asked, "complete")


def choose_baseline(asked: str | None, modality: str | None) -> str:
    """The baseline asked for, or the first that images of the modality have."""
    known = tuple(ct.COLUMNS) if modality == "ct" else (NUCLEI,)
    if asked not in (None, *known):
        raise BadOptions(f"--baseline {asked}: of images of modality {modality or 'unknown'} there "
                         f"is {' or '.join(known)}")
    return asked or known[0]


def identify(path: Path, data: dict, real: dict, repeats: range, *, baseline: str, replicate: int,
             seed: int, benign: str | None) -> list[dict]:
    """What decides each repeat asked for; data and real are manifests."""
    settings = {"recipe": RECIPE, "folds": FOLDS, "trees": TREES, "benign": benign,
                "image_size": data["image_size"]}
    if baseline == NUCLEI:
        measured = data.get("features", {}).get(IMAGES_FILE, {}).get("sha256")
        if measured is None:
            raise Fault(f"{path} holds no {IMAGES_FILE}: --features takes a dataset made by "
                        "voronoi_seg.py (--overwrite there, if it is of an older version)")
    else:
        if data["fingerprint"] != real["fingerprint"]:
            raise Fault(f"{path} is not the real dataset: of CT sizes and texture are those of "
                        "real itself, give --features the folder that --real has")
        measured = ct.fingerprint(path, baseline)
        settings["features_recipe"] = ct.RECIPE
    if benign is not None and benign not in real["classes"]:
        raise BadOptions(f"--benign {benign} is not a class: there are "
                         f"{', '.join(real['classes'])}")
    return [{"dataset": baseline, "dataset_fingerprint": measured,
             "real_fingerprint": real["fingerprint"], "replicate": replicate, "repeat": repeat,
             "seed": seed + repeat, "model": MODELS[baseline], "settings": settings}
            for repeat in repeats]


def benign_class(asked: str | None, real: dict) -> str | None:
    """The class without tumour: as asked, or the one that tumor_seg.py --benign named."""
    named = real.get("parameters", {}).get("benign") or []
    return asked or (named[0] if len(named) == 1 else None)


def report(asked: Repeats, state: str) -> None:
    """Print the accuracies, and what was found about malignancy."""
    report_repeats(asked, state)
    records = asked.records()
    families = [record["chosen"]["family"] for record in records]
    print("chosen: " + ", ".join(f"{name} {families.count(name)}" for name in sorted(set(families)))
          + f"  accuracy_all_groups mean "
          f"{statistics.fmean(record['accuracy_all_groups'] for record in records):.4f}")
    told = [record["malignancy"] for record in records if "malignancy" in record]
    if told:
        shown = "  ".join(f"{name} mean {statistics.fmean(each[name] for each in told):.4f}"
                          for name in ("balanced_accuracy", "sensitivity", "specificity", "auroc"))
        print(f"tumour against {told[0]['benign']}: {shown}")


def build_parser():
    parser = cli.stage_parser("nuclei_classify.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--features", type=cli.directory, required=True, metavar="DIR",
                       help="the dataset made by voronoi_seg.py; of CT, the real one")
    add_options(group)
    group.add_argument("--baseline", choices=list(MODELS),
                       help="what is measured, and the name of the results (default: nuclei; of "
                            "CT size)")
    group.add_argument("--benign", metavar="CLASS",
                       help="the class without tumour, to say how well tumour is told from it "
                            "(default: as tumor_seg.py --benign said, if it named one)")
    cli.add_common(parser, device=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
