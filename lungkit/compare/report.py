"""The comparison for readers: tables, and one self-contained HTML page; no test is made here."""

from __future__ import annotations

import base64
import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lungkit.compare import figures, scores
from lungkit.compare.results import Results
from lungkit.data.result import SCORES, SPLITS

TEMPLATE = Path(__file__).with_name("report.html.j2")  # the page's words and its style
MEASURES = (*dict.fromkeys(name for of_task in SCORES.values() for name in of_task),
            "auprc_baseline")  # in the order of the columns


# ------------------------------------------------------------------ one line per dataset

def summarise(found: Results, metric: str, intervals: dict[str, tuple] | None = None) -> list[dict]:
    """Per dataset: means and spread over repeats, and the test set's own limits.

    intervals: (low, high) of each mean over test groups and trainings; None: not known.
    """
    arms, named = [], [f"{name}_{split}" for split in SPLITS for name in MEASURES]
    for name in found.datasets:
        rows = [row for row in found.rows if row["dataset"] == name]
        values = found.values(name, metric)
        arm = {"dataset": name, "metric": metric, "n": len(values),
               "mean": statistics.fmean(values), "median": statistics.median(values),
               "sd": statistics.stdev(values) if len(values) > 1 else None}
        for measure in dict.fromkeys([*named, *found.metrics]):
            known = [row[measure] for row in rows if row.get(measure) is not None]
            if known:
                arm[measure] = statistics.fmean(known)
        split = scores.parts(metric)[1]
        if split and scores.is_accuracy(metric):
            lines = rows[0][split]["confusion_matrix"]  # one per true class, in any repeat the same
            arm["num_images"] = sum(map(sum, lines))
            arm["majority_share"] = max(map(sum, lines)) / arm["num_images"]
        if intervals:
            arm["test_low"], arm["test_high"] = intervals[name]
        arms.append(arm)
    return arms


# ------------------------------------------------------------------ the page

def contents(found: Results, metric: str, arms: list[dict], pairs: list, *, alpha: float,
             margin: float, warnings: list[str], sheets_dir: Path | None,
             answer: Sequence[str]) -> dict[str, bytes]:
    """The files of a comparison, all but its manifest."""
    pictures = {"accuracy_boxplot.png": figures.boxplot_png(found, metric, arms),
                "accuracy_differences.png": figures.differences_png(pairs, margin)}
    html = page(found, metric, arms, pairs, alpha=alpha, margin=margin, warnings=warnings,
                pictures=pictures, sheets=read_sheets(sheets_dir, found.datasets),
                answer=answer)
    return {"accuracies.csv": table_csv([tidy(row) for row in found.rows]).encode(),
            "wilcoxon.csv": table_csv([asdict(pair) for pair in pairs]).encode(),
            **pictures, "report.html": html.encode()}


def page(found: Results, metric: str, arms: list[dict], pairs: list, *, alpha: float,
         margin: float, warnings: list[str], pictures: dict[str, bytes],
         sheets: dict[str, bytes], answer: Sequence[str] = ()) -> str:
    """The whole report as one HTML page that needs no other file."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True,
                                     keep_trailing_newline=True)
    environment.filters |= {
        "points": points, "p_words": p_words, "percent": percent, "capital": scores.capital,
        "metric_words": scores.metric_words,
        "parts": scores.parts,
        "base64": lambda content: base64.b64encode(content).decode("ascii")}
    environment.tests |= {"accuracy": scores.is_accuracy, "on_grid": scores.on_grid}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    score, split = scores.parts(metric)
    return template.render(
        found=found, metric=metric, score=score, split=split, arms=arms, pairs=pairs, alpha=alpha,
        margin=margin, warnings=warnings, pictures=pictures, sheets=sheets, answer=answer,
        columns=known_columns(arms, metric), malignancy=malignancy(found),
        sizes=sorted({arm["num_images"] for arm in arms if "num_images" in arm}),
        fingerprints={(row["dataset"], row["replicate"]): row["dataset_fingerprint"]
                      for row in found.rows if "dataset_fingerprint" in row})


def known_columns(arms: list[dict], metric: str) -> list[str]:
    """What a table of the arms shows of each, in order: all that is known of any of them."""
    score, split = scores.parts(metric)
    elsewhere = {"real": f"{score}_own", "own": f"{score}_real"}.get(split)
    columns = ["mean", "sd", "median", "test_low", elsewhere, "majority_share",
               *(f"{name}_{split}" for name in MEASURES if name != score)]
    return [name for name in columns if any(arm.get(name) is not None for arm in arms)]


def malignancy(found: Results) -> list[dict]:
    """How well a baseline tells tumour from benign on the real test images, where it says so."""
    lines = []
    for name in found.baselines:
        told = [row["malignancy"] for row in found.rows
                if row["dataset"] == name and "malignancy" in row]
        if told:
            lines.append({"dataset": name, "n": len(told), "benign": told[0]["benign"], **{
                key: statistics.fmean(each[key] for each in told)
                for key in ("balanced_accuracy", "sensitivity", "specificity", "auroc")}})
    return lines


def points(shift: float) -> str:
    """A difference in accuracy as it is printed, in points: +1.7, 0.0, -unbounded."""
    if math.isinf(shift):
        return "-unbounded" if shift < 0 else "unbounded"
    return f"{shown:+.1f}" if (shown := round(100 * shift, 1)) else "0.0"  # never -0.0


def p_words(p: float) -> str:
    """A p-value as it is printed: 0.0123, or <0.0001."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def percent(share: float | None) -> str:
    """A share as it is printed, in percent; None, not known, is empty."""
    return "" if share is None else f"{100 * share:.1f}"


def read_sheets(sheets_dir: Path | None, datasets: list[str]) -> dict[str, bytes]:
    """The contact sheets `<dataset>.png` found in `sheets_dir`; None means none are wanted."""
    if sheets_dir is None:
        return {}
    paths = {path.stem: path for path in sheets_dir.glob("*.png")}
    return {name: paths[name].read_bytes() for name in datasets if name in paths}


# ------------------------------------------------------------------ tables

def table_csv(lines: list[dict]) -> str:
    """Lines as CSV text; None is an empty cell, nested values are left out."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def tidy(row: dict) -> dict:
    """A row as one flat line, the dataset first: its numbers and words, and nothing nested."""
    return {"dataset": row["dataset"], **{
        name: value for name, value in row.items()
        if isinstance(value, (str, int, float)) and name != "schema"}}


def verdict_table(pairs: Sequence) -> str:
    """Every pair at its highest level as aligned plain text."""
    lines = [("arm", "against", "level", "difference", "decision", "rank-sum p (Holm)")]
    lines += [(pair.arm, pair.against, pair.level or "-",
               points(pair.estimates[pair.level].difference) if pair.level else "",
               pair.decision or "no verdict", p_words(pair.rank_sum["p_holm"])) for pair in pairs]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(
        cell.rjust(width) if place in (3, 5) else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)
