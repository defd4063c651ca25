"""Several tasks on one split of patients: a table of all, the ruler in every row.

Reads   RUN/<task>/comparison/comparison.json   each task is a run of its own
        RUN/<task>/datasets/real/split.csv      and of its replicates: the patients of each split
Writes  RUN/tasks.csv   a row for each arm and baseline of each task: its score with its interval,
                        the ruler's, the difference between them, what guessing scores
        RUN/tasks.txt   the same in words
Prints  tasks.txt.

The ruler is a logistic regression on the nodule's size (nuclei_classify.py --baseline size): a
network has learnt more than size only where it scores more. Of nodule or none there is none.
Exit statuses: 0 complete, 1 a comparison is missing or the patients are split otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lungkit.compare.scores import metric_words, parts
from lungkit.data.result import BASELINE, repeat_path, replicate_dir
from lungkit.run import cli
from lungkit.run.faults import Fault
from lungkit.run.files import read_json, write_text
from lungkit.run.tables import read_table

RULER = "size"


def rows_of(task: str, run_dir: Path) -> list[dict]:
    """A row for each arm of one task's run; None where something is not known.

    Scores, differences and intervals are fractions. Raises Fault where there is no comparison.
    """
    path = run_dir / "comparison/comparison.json"
    if not path.is_file():
        raise Fault(f"{run_dir} holds no comparison yet: run it again until it is complete, or "
                    "leave it out of TASKS")
    found = read_json(path)
    arms = {arm["dataset"]: arm for arm in found["arms"]}
    ruler = arms.get(RULER) if arms.get(RULER, {}).get("kind") == BASELINE else None
    rows = []
    for name, arm in arms.items():
        if arm is ruler:
            continue
        beyond = difference(found["pairs"], name) if ruler else {}
        rows.append({
            "task": task, "arm": name, "kind": arm["kind"], "metric": found["metric"],
            "score": arm["mean"], "low": arm["low"], "high": arm["high"],
            **{f"ruler{end}": ruler[key] if ruler else None
               for end, key in (("", "mean"), ("_low", "low"), ("_high", "high"))},
            "beyond_ruler": beyond.get("difference"), "beyond_low": beyond.get("low"),
            "beyond_high": beyond.get("high"), "level": beyond.get("level"),
            "guessing": guessing(found, run_dir), "repeats": found["num_repeats"],
            "replicates": found["num_replicates"],
            "groups": " ".join(f"{label} {n}" for label, n in found["groups_per_class"].items()),
            "fewest_groups": min(found["groups_per_class"].values(), default=None)})
    return rows


def difference(pairs: list[dict], arm: str) -> dict:
    """arm - ruler at the highest level that their pair reaches: {difference, low, high, level}."""
    for pair in pairs:
        if {pair["arm"], pair["against"]} != {arm, RULER} or pair["level"] is None:
            continue
        at = pair["estimates"][pair["level"]]
        if pair["arm"] == arm:
            return {name: at[name] for name in ("difference", "low", "high", "level")}
        return {"difference": -at["difference"], "level": at["level"],
                "low": None if at["high"] is None else -at["high"],
                "high": None if at["low"] is None else -at["low"]}
    return {}


def guessing(found: dict, run_dir: Path) -> float | None:
    """What guessing by prevalence, or always the largest class, scores; None of another score."""
    record = read_json(repeat_path(replicate_dir(run_dir / "results", "real", 0), 0))["real"]
    if found["metric"] == "auprc_weighted_real":
        return record["auprc_baseline"]
    if found["metric"] == "accuracy_real":
        return max(map(sum, record["confusion_matrix"])) / record["num_images"]
    return None


def check_splits(run_dirs: dict[str, Path]) -> None:
    """Raise Fault where a patient is in one split of one task and in another of another."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for task, run_dir in run_dirs.items():
        for path in [run_dir / "datasets/real/split.csv",
                     *sorted(run_dir.glob("replicates/*/datasets/real/split.csv"))]:
            if not path.is_file():
                continue
            place = path.relative_to(run_dir).as_posix()
            for _, row in read_table(path, ("patient", "split")).rows:
                other, split = first.setdefault((place, row["patient"]), (task, row["split"]))
                if split != row["split"]:
                    raise Fault(f"patient {row['patient']} is in {split} of {other} and in "
                                f"{row['split']} of {task} ({place}): these tasks have no split in "
                                "common; make them of one INPUT by one SEED")


def in_words(rows: list[dict]) -> str:
    """The rows as a text table, intervals in brackets."""
    cells = [("task", "arm", "score", "mean", "ruler", "beyond the ruler, points", "guessing", "n",
              "fewest test groups a class")]
    for row in rows:
        cells.append((
            row["task"], row["arm"], metric_words(parts(row["metric"])[0]),
            _between(row["score"], row["low"], row["high"], "{:.3f}"),
            _between(row["ruler"], row["ruler_low"], row["ruler_high"], "{:.3f}"),
            _between(*(None if row[name] is None else 100 * row[name] for name in (
                "beyond_ruler", "beyond_low", "beyond_high")), "{:+.1f}")
            + (f" {row['level']}" if row["level"] else ""),
            "-" if row["guessing"] is None else f"{row['guessing']:.3f}",
            str(row["repeats"] * row["replicates"]), str(row["fewest_groups"] or "-")))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in cells)


def _between(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None:
        return "-"
    if low is None or high is None:
        return form.format(value)
    return f"{form.format(value)} ({form.format(low)} to {form.format(high)})"


# ------------------------------------------------------------------ the table

def run(*, run_dir: Path, tasks: list[str]) -> None:
    from lungkit.compare.report import table_csv  # draws, which --help must not wait for

    run_dirs = {task: run_dir / task for task in tasks}
    check_splits(run_dirs)
    rows = [row for task, place in run_dirs.items() for row in rows_of(task, place)]
    text = in_words(rows) + "\n"
    write_text(run_dir / "tasks.csv", table_csv(rows))
    write_text(run_dir / "tasks.txt", text)
    print(f"{text}table: {run_dir / 'tasks.csv'}")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("python -m lungkit.compare.tasks", __doc__)
    parser.add_argument("run_dir", type=cli.directory, metavar="RUN",
                        help="the run directory of all tasks")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK",
                        help="the tasks, folders of RUN")
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
