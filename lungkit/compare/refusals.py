"""What must not be compared, and what the reader of a comparison must be told of the results.

`found` is a results.Results, `rows` are its rows.
"""

from __future__ import annotations

from collections import defaultdict

from lungkit.data.result import CNN, is_baseline

REAL = "real"
# what must be one and the same in all results of a comparison, or the arms were not treated alike
SETTINGS = ("model", "steps", "settings")


def twice(rows: list[dict]) -> list[str]:
    """Faults where one training counts twice, which would shrink every p-value."""
    faults, seen, seeds = [], set(), {}
    for row in rows:
        key = (row["dataset"], row["replicate"], row["repeat"])
        if key in seen:
            faults.append(f"{_place(*key)} is given twice")
        seen.add(key)
        if "seed" in row:
            seed_key = (row["dataset"], row["replicate"], row["seed"])
            if seeds.setdefault(seed_key, row["repeat"]) != row["repeat"]:
                faults.append(f"{_place(*key)} has the seed of repeat {seeds[seed_key]}: "
                              "one training given twice")
    return faults


def missing(found) -> list[str]:
    """Faults where a run has not all repeats yet."""
    faults = []
    seen = {(row["dataset"], row["replicate"], row["repeat"]) for row in found.rows}
    for dataset in found.datasets:
        for replicate in found.replicates:
            lacking = [str(repeat) for repeat in found.repeats
                       if (dataset, replicate, repeat) not in seen]
            if lacking:
                listed = ", ".join(lacking[:6]) + (", ..." if len(lacking) > 6 else "")
                faults.append(
                    f"{dataset} replicate {replicate} lacks repeat {listed} "
                    f"({len(found.repeats) - len(lacking)} of {len(found.repeats)} there): run the "
                    "missing ones, or trim all datasets with --repeats")
    return faults


def mixed_runs(found) -> list[str]:
    """Faults where one comparison would hold two runs, or arms that were treated differently."""
    faults = []
    groups: dict[tuple, dict] = defaultdict(dict)
    for row in found.rows:
        where = _place(row["dataset"], row["replicate"], row["repeat"])
        checks = {("real_fingerprint", f"replicate {row['replicate']}"): row["real_fingerprint"],
                  ("dataset_fingerprint", f"{row['dataset']} replicate {row['replicate']}"):
                      row["dataset_fingerprint"],
                  ("kind", row["dataset"]): row.get("kind", CNN),
                  ("task", "all results"): row["task"]}
        scope = f"all results of {row['dataset']}" if is_baseline(row) else "all results"
        checks |= {(name, scope): repr(row.get(name)) for name in SETTINGS}
        for key, value in checks.items():
            groups[key].setdefault(value, where)
    for (name, scope), places in groups.items():
        if len(places) > 1:
            listed = " but ".join(f"{str(value)[:40]} in {where}"
                                  for value, where in list(places.items())[:2])
            faults.append(f"results of two runs are mixed: {name} is not one in {scope} ({listed})")
    return faults


def saw_test_images(rows: list[dict]) -> list[str]:
    """Faults where what made a dataset was trained on real test images, or on another real."""
    faults = set()
    for row in rows:
        said = row.get("trained_on")
        for parent in said if isinstance(said, list) else []:  # or unproven() refuses it
            if parent.get("name") != REAL and parent.get("fingerprint") != row["real_fingerprint"]:
                continue
            if "test" in parent.get("splits", ["test"]):  # not said: the worst is assumed
                faults.add(f"{row['dataset']} replicate {row['replicate']} was trained on the real "
                           "test split: its accuracy on real images means nothing")
            if parent.get("fingerprint") != row["real_fingerprint"]:
                faults.add(f"{row['dataset']} replicate {row['replicate']} was trained on another "
                           "real dataset than it is tested on: test images may be among them")
    return sorted(faults)


def leaked(rows: list[dict]) -> list[str]:
    """Faults where the images trained on were not found clean of real's test images."""
    return sorted({f"{row['dataset']} replicate {row['replicate']} was trained on images that are "
                   "real test images or copies of them: its accuracy on real images means nothing"
                   for row in rows if row["leaks"] is not None and not _is_clean(row["leaks"])})


def not_searched(rows: list[dict]) -> list[str]:
    """A fault where nobody has looked for real's test images among those trained on."""
    lacking = dict.fromkeys(row["dataset"] for row in rows if row["leaks"] is None)
    return [f"{', '.join(lacking)}: nobody has looked for real's test images among those trained "
            "on (no leaks in the records): run cnn_classify.py, of a baseline nuclei_classify.py, "
            "again as it was run (compare_models.sh does), which looks and trains nothing anew"
            ] if lacking else []


def _is_clean(leaks: object) -> bool:
    return isinstance(leaks, dict) and leaks.get("passed") is True


def unproven(rows: list[dict]) -> list[str]:
    """Faults where a record does not say what was seen in training: that is no clean record."""
    return sorted({f"{row['dataset']} replicate {row['replicate']} does not say what it was "
                   "trained on (trained_on): run cnn_classify.py on its dataset"
                   for row in rows if not row.get("trained_on")
                   or not isinstance(row["trained_on"], list)})


def note_settings_and_warnings(found) -> None:
    """Fill in the settings of the CNNs, and what the reader of the results must be told."""
    cnns = [row for row in found.rows if not is_baseline(row)]
    first = (cnns or found.rows)[0]
    found.settings = {name: first[name] for name in ("model", "steps") if name in first}
    found.settings |= first.get("settings") or {}
    said_by: dict[str, set] = defaultdict(set)
    for row in found.rows:
        for text in row.get("warnings") or []:
            said_by[str(text)].add(row["dataset"])
    for text, names in said_by.items():
        prefix = "" if names == set(found.datasets) else \
            ", ".join(name for name in found.datasets if name in names) + ": "
        found.warnings.append(prefix + text)
    found.warnings += shared_draws(cnns)
    for name in ("device", "versions"):
        kinds = {repr(row.get(name)) for row in cnns}  # a baseline has other libraries, no GPU
        if len(kinds) > 1:
            found.warnings.append(f"mixed {name}: the results come from {len(kinds)} different "
                                  f"{name}; equal seeds need not give equal trainings there")
    for replicates in found.splits:
        if len(replicates) > 1:
            found.warnings.append(
                f"same split: replicates {' and '.join(map(str, replicates))} test on the same "
                "real split; they are not whole-pipeline replicates, their trainings are repeats")
    by_set: dict[tuple, set] = defaultdict(set)
    for row in found.rows:
        if row["dataset"] != REAL:
            by_set[row["dataset"], row["dataset_fingerprint"]].add(row["real_fingerprint"])
    again = dict.fromkeys(name for (name, _), splits in by_set.items() if len(splits) > 1)
    if again:
        found.warnings.append(f"same set: {', '.join(again)} came from one generated set in "
                              "several replicates; nothing is said of other trainings of the "
                              "generator")
    copies: dict[str, str] = {}
    for row in found.rows:
        same = copies.setdefault(row["dataset_fingerprint"], row["dataset"])
        if same != row["dataset"]:
            found.warnings.append(f"same images: {same} and {row['dataset']} are one dataset under "
                                  "two names")
            break


def shared_draws(rows: list[dict]) -> list[str]:
    """Of each arm with a pool, the mean share of training images that two of its repeats share.

    A record counts what its repeat shares with each earlier one: the mean over pairs weighs it by
    their number. Nothing is said of draws that share none.
    """
    said = []
    for name in dict.fromkeys(row["dataset"] for row in rows if "draws" in row):
        of_arm = [row for row in rows if row["dataset"] == name and "draws" in row]
        pairs = sum(row["repeat"] for row in of_arm)
        shared = sum(row["repeat"] * row["shared_with_earlier"] for row in of_arm)
        if shared:
            said.append(f"shared draws: two repeats of {name} share {shared / pairs:.0%} of their "
                        f"training images on average: its pool holds {of_arm[0]['draws']} draws "
                        "that share none")
    return said


def _place(dataset: str, replicate: int, repeat: int) -> str:
    return f"{dataset} replicate {replicate} repeat {repeat}"
