"""The comparison for readers: tables, and one self-contained HTML page; no test is made here."""

from __future__ import annotations

import base64
import csv
import io
import math
import statistics
from dataclasses import asdict
from html import escape
from pathlib import Path

from lungkit.compare import figures
from lungkit.compare.figures import metric_words
from lungkit.compare.results import REAL, Results

MEASURES = {"balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro F1", "auroc": "AUROC",
            "auprc_weighted": "Weighted AUPRC", "auprc_baseline": "AUPRC by prevalence"}


# ------------------------------------------------------------------ one line per dataset

def summarise(found: Results, metric: str, interval) -> list[dict]:
    """Per dataset: means and spread over repeats, and the test set's own limits.

    interval: (share, num_images) -> (low, high), the binomial interval of one accuracy.
    """
    arms = []
    for name in found.datasets:
        rows = [row for row in found.rows if row["dataset"] == name]
        values = found.values(name, metric)
        arm = {"dataset": name, "metric": metric, "n": len(values),
               "mean": statistics.fmean(values), "median": statistics.median(values),
               "sd": statistics.stdev(values) if len(values) > 1 else None}
        for other in found.metrics:
            arm[other] = statistics.fmean(row[other] for row in rows)
        if metric != "accuracy":
            split = metric.removeprefix("accuracy_")
            matrix = rows[0][split]["confusion_matrix"]  # a line per true class: shares are the test set's
            arm["num_images"] = sum(map(sum, matrix))
            arm["majority_share"] = max(map(sum, matrix)) / arm["num_images"]
            arm["test_low"], arm["test_high"] = interval(arm["mean"], arm["num_images"])
            for measure in MEASURES:
                known = [row[split][measure] for row in rows if row[split].get(measure) is not None]
                arm[measure] = statistics.fmean(known) if known else None
        arms.append(arm)
    return arms


# ------------------------------------------------------------------ the page

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
       color: #1c2126; background: #fff; max-width: 60rem; margin: 2.5rem auto 5rem; padding: 0 1.25rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem }
p, li { max-width: 46rem } .quiet { color: #5a646e; font-size: .92rem }
ul { padding-left: 1.2rem } li { margin: .3rem 0 }
.answer { border-left: 4px solid #0072B2; padding: .1rem 0 .1rem 1rem; margin: 1.4rem 0 }
.answer li { list-style: none; margin-left: -1.2rem }
.warnings { background: #fff6e0; border: 1px solid #ecd08a; border-radius: 8px; padding: .8rem 1.2rem;
            margin: 1.6rem 0 } .warnings h2 { margin: 0; font-size: 1.05rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem; width: 100%;
          font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #c9d0d6; vertical-align: bottom }
th, td { padding: .42rem .7rem .42rem 0 } td { border-bottom: 1px solid #e8ebee; vertical-align: top }
.number { text-align: right; white-space: nowrap } .name { white-space: nowrap }
img { max-width: 100%; height: auto; display: block } figure { margin: 1rem 0 1.6rem }
figcaption { color: #5a646e; font-size: .9rem; margin-top: .3rem }
.sheet img { width: 100%; border: 1px solid #dfe3e7; border-radius: 4px }
details { margin-top: 1rem } summary { cursor: pointer; color: #0a5a8a }
@media print { body { margin: 0; max-width: none; font-size: 11px } h2 { break-after: avoid }
               figure, tr { break-inside: avoid } }
"""


def contents(found: Results, metric: str, arms: list[dict], pairs: list, *, alpha: float,
             margin: float, warnings: list[str], sheets_dir: Path | None) -> dict[str, bytes]:
    """The files of a comparison, all but its manifest."""
    pictures = {"accuracy_boxplot.png": figures.boxplot_png(found, metric, arms),
                "accuracy_differences.png": figures.differences_png(pairs, margin)}
    html = page(found, metric, arms, pairs, alpha=alpha, margin=margin, warnings=warnings,
                pictures=pictures, sheets=read_sheets(sheets_dir, found.datasets))
    return {"accuracies.csv": table_csv([tidy(row) for row in found.rows]).encode(),
            "wilcoxon.csv": table_csv([asdict(pair) for pair in pairs]).encode(),
            **pictures, "report.html": html.encode()}


def page(found: Results, metric: str, arms: list[dict], pairs: list, *, alpha: float,
         margin: float, warnings: list[str], pictures: dict[str, bytes],
         sheets: dict[str, bytes]) -> str:
    """The whole report as one HTML page that needs no other file."""
    title = "Can synthetic images stand in for real ones?" if REAL in found.datasets else \
        "Comparison of datasets"
    unit_words = f"{arms[0]['n']} {pairs[0].unit}s each"
    protocol = protocol_in_words(found, metric=metric, unit=pairs[0].unit, alpha=alpha, margin=margin,
                                 margin_tested=pairs[0].margin_tested)
    against_real = [pair for pair in pairs if pair.dataset_a == REAL]
    margin_points = f"{100 * margin:g}"
    headline = "".join(f"<li><b>{escape(pair.dataset_b)}</b>{_kind_words(found, pair.dataset_b)}: "
                       f"{escape(pair.verdict)}</li>" for pair in against_real)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{len(found.datasets)} datasets, {escape(unit_words)}; '
        f"metric: {metric_words(metric)}; {len(pairs)} pairs, significance level {alpha:g} after "
        f"Holm, margin ±{margin_points} points.</p>",
        f'<div class="answer"><ul>{headline}</ul></div>' if headline else "",
        '<div class="warnings"><h2>Read first</h2>' + _list(warnings) + "</div>" if warnings else "",
        "<h2>Verdicts</h2>", _pair_table(pairs),
        f'<p class="quiet">Differences are a − b in points of accuracy (Hodges-Lehmann) with their '
        f"{100 * (1 - alpha):g} % interval, not adjusted for the number of pairs. A12 is the chance "
        "that a repeat of a scores higher than one of b, ties counted half. Equivalence p: two "
        "one-sided rank tests against the margin. No difference shown is not equivalence.</p>",
        _image(pictures["accuracy_differences.png"], "Difference of every pair",
               "Intervals inside the green band lie within the margin; intervals that cross zero and "
               "leave the band show neither a difference nor equivalence."),
        "<h2>Accuracies</h2>",
        _image(pictures["accuracy_boxplot.png"], "Accuracy of every repeat",
               "Box: quartiles and median. The spread is that of the repeats alone; the test images "
               "are the same in all of them."),
        _arm_table(arms, metric), malignancy_in_words(found),
        "<h2>The images</h2>" + "".join(
            '<div class="sheet">' + _image(content, f"Images of {name}", f"{name}: a row per class")
            + "</div>" for name, content in sheets.items()) if sheets else "",
        "<h2>Protocol</h2>", _list(protocol),
        "<details><summary>All numbers of the tests</summary>" + _all_numbers(pairs) + "</details>",
        "<details><summary>Settings and inputs</summary>" + _settings(found) + "</details>"]
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
            + "\n".join(part for part in parts if part) + "\n</body></html>\n")


def _kind_words(found: Results, dataset: str) -> str:
    return " (classical baseline, no CNN)" if dataset in found.baselines else ""


def malignancy_in_words(found: Results) -> str:
    """How well a baseline tells tumour from benign on the real test images, where it says so."""
    lines = []
    for name in found.baselines:
        told = [row["malignancy"] for row in found.rows
                if row["dataset"] == name and "malignancy" in row]
        if told:
            mean = {key: f"{100 * statistics.fmean(each[key] for each in told):.1f}"
                    for key in ("balanced_accuracy", "sensitivity", "specificity", "auroc")}
            lines.append(f"{name} tells tumour from {told[0]['benign']} on the real test images with "
                         f"balanced accuracy {mean['balanced_accuracy']} % (sensitivity "
                         f"{mean['sensitivity']} %, specificity {mean['specificity']} %, AUROC "
                         f"{mean['auroc']} %; means of {len(told)} repeats).")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _pair_table(pairs: list) -> str:
    lines = [[pair.dataset_a, pair.dataset_b, verdict_in_short(pair), points(pair.shift),
              f"{points(pair.shift_low)} to {points(pair.shift_high)}", f"{pair.a12:.2f}",
              p_words(pair.p_holm), p_words(pair.p_equivalent_holm)] for pair in pairs]
    return _table(["a", "b", "Verdict", "a − b", "Interval", "A12", "p (Holm)", "Equivalence p (Holm)"],
                  lines, text_columns=3)


def _arm_table(arms: list[dict], metric: str) -> str:
    columns = {"dataset": "Dataset", "n": "n", "mean": "Mean", "sd": "SD", "median": "Median",
               "test_interval": "Test-set interval", "other": "", "majority_share": "Largest class"}
    other = {"accuracy_real": "accuracy_own", "accuracy_own": "accuracy_real"}.get(metric)
    columns["other"] = {"accuracy_own": "Mean on own test", "accuracy_real": "Mean on real test",
                        None: ""}[other]
    columns |= MEASURES
    lines = []
    for arm in arms:
        cells = {**arm, "other": arm.get(other), "n": str(arm["n"])}
        if "test_low" in arm:
            cells["test_interval"] = f"{100 * arm['test_low']:.1f} to {100 * arm['test_high']:.1f}"
        lines.append(cells)
    shown = [name for name in columns if any(line.get(name) is not None for line in lines)]
    body = [[line[name] if isinstance(line.get(name), str) else
             "" if line.get(name) is None else f"{100 * line[name]:.1f}" for name in shown]
            for line in lines]
    sizes = sorted({arm.get("num_images", 0) for arm in arms})  # own test splits may differ
    note = "" if not sizes[0] else (
        f'<p class="quiet">In percent; means over repeats. Test-set interval: Wilson 95 % interval of '
        f"one accuracy on {' or '.join(map(str, sizes))} test images, in steps of "
        f"{' or '.join(f'{100 / size:.2g}' for size in sizes)} points: how far other test images of "
        "the same kind could move it. The SD is that of the trainings alone.</p>")
    return _table([columns[name] for name in shown], body, text_columns=1) + note


def _all_numbers(pairs: list) -> str:
    heads = ["a", "b", "n", "Median a", "Median b", "U", "p", "Smallest p, these ties",
             "Smallest p, no ties", "n needed", "p a not worse", "p b not worse", "Method"]
    return _table(heads, [[
        pair.dataset_a, pair.dataset_b, f"{pair.n_a}, {pair.n_b}", f"{100 * pair.median_a:.1f}",
        f"{100 * pair.median_b:.1f}", f"{pair.u:g}", p_words(pair.p), p_words(pair.p_smallest),
        p_words(pair.p_smallest_without_ties), str(pair.n_needed), p_words(pair.p_a_not_worse),
        p_words(pair.p_b_not_worse), pair.method] for pair in pairs], text_columns=2)


def _settings(found: Results) -> str:
    items = [f"{name}: {value}" for name, value in found.settings.items()]
    items.append(f"repeats {', '.join(map(str, found.repeats))}; "
                 f"replicates {', '.join(map(str, found.replicates))}")
    seen = {}
    for row in found.rows:
        if "dataset_fingerprint" in row:
            seen[row["dataset"], row["replicate"]] = row["dataset_fingerprint"]
    items += [f"{name}, replicate {replicate}: fingerprint {fingerprint}"
              for (name, replicate), fingerprint in seen.items()]
    return _list(items)


def interval_in_words(pair) -> str:
    return (f"{pair.dataset_a} - {pair.dataset_b} from {points(pair.shift_low)} to "
            f"{points(pair.shift_high)} points")


def verdict_in_short(pair) -> str:
    """The verdict without its brackets, whose numbers have columns; names may hold brackets too."""
    before, _, after = pair.verdict.partition(interval_in_words(pair) + ")")
    return before[:before.rindex(" (")] + after


def points(shift: float) -> str:
    """A difference in accuracy as it is printed, in points: +1.7, 0.0, -unbounded."""
    if math.isinf(shift):
        return "-unbounded" if shift < 0 else "unbounded"
    return f"{shown:+.1f}" if (shown := round(100 * shift, 1)) else "0.0"  # never -0.0


def p_words(p: float) -> str:
    """A p-value as it is printed: 0.0123, or <0.0001."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _table(heads: list[str], lines: list[list[str]], *, text_columns: int) -> str:
    def kind(place: int) -> str:
        return ' class="number"' if place >= text_columns else ' class="name"' if place < 2 else ""

    head = "".join(f"<th{kind(i)}>{escape(text)}</th>" for i, text in enumerate(heads))
    body = "".join("<tr>" + "".join(f"<td{kind(i)}>{escape(text)}</td>" for i, text in
                                    enumerate(line)) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(items: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _image(content: bytes, alternative: str, caption: str) -> str:
    encoded = base64.b64encode(content).decode("ascii")
    return (f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def read_sheets(sheets_dir: Path | None, datasets: list[str]) -> dict[str, bytes]:
    """The contact sheets `<dataset>.png` found in `sheets_dir`; None means none are wanted."""
    if sheets_dir is None:
        return {}
    paths = {path.stem: path for path in sheets_dir.glob("*.png")}
    return {name: paths[name].read_bytes() for name in datasets if name in paths}


def protocol_in_words(found: Results, *, metric: str, unit: str, alpha: float,
                      margin: float, margin_tested: float) -> list[str]:
    """How the numbers came about, for the report."""
    margin_words = f"{100 * margin:g} points"
    trained = ("Each repeat is an independently seeded training of the same CNN on the same dataset"
               + (f" ({', '.join(f'{k} {v}' for k, v in found.settings.items())})."
                  if found.settings else "."))
    tested = {"accuracy_real": "Every CNN, whatever it was trained on, is tested on the same "
                               "held-out real images, which no generator has seen.",
              "accuracy_own": "Every CNN is tested on the test split of its own dataset."}
    baseline = [
        f"{' and '.join(found.baselines)}: a classical baseline, no CNN. Logistic regression or a "
        "random forest on measurements of the nuclei of the same real images, chosen by "
        "cross-validation by group within the train split; each repeat is fitted to a bootstrap of "
        "that split's groups, so its spread is that of training sets and not of seeds."
    ] if found.baselines else []
    return [
        trained, *baseline, tested.get(metric, "Accuracies are taken as given in the CSV."),
        "The unit of replication is the repeat (the CNN's seed and, for pooled generated datasets, "
        "its draw)." if unit == "repeat" else
        f"The unit of replication is the whole-pipeline replicate: the mean of its "
        f"{len(found.repeats)} repeats is one value.",
        "Every pair is compared by the two-sided Wilcoxon rank-sum (Mann-Whitney U) test. Arms are "
        "independent trainings, so values are not paired. p is exact: the permutation distribution "
        "of the midrank sum given the ties at hand, twice the smaller tail.",
        f"p-values of the pairs are adjusted by Holm's method; significant means at most {alpha:g}.",
        "The difference is the Hodges-Lehmann shift; its interval holds the shifts the same exact "
        "test does not reject, in whole test images and half of one beyond.",
        f"Equivalent means: both one-sided rank tests against a shift of {margin_words} have p at "
        f"most {alpha:g} after Holm over the pairs. Not worse than real: the one test that matters "
        f"has p at most {alpha / 2:g} after Holm over the pairs with real. Both take the two "
        "distributions to differ by a shift. The margin is tested in whole test images: "
        f"{100 * margin_tested:.3g} points.",
        "The spread is that of trainings alone. That the test images are themselves a sample is not "
        "in any p-value; the test-set interval shows how much it matters."]


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
    """A result as one flat line: its numbers, and those of both test splits as <name>_<split>."""
    line = {name: value for name, value in row.items()
            if isinstance(value, (str, int, float)) and name != "schema"}
    for split in ("own", "real"):
        line |= {f"{name}_{split}": value for name, value in row.get(split, {}).items()
                 if isinstance(value, (int, float))}
    return line


def verdict_table(pairs: list) -> str:
    """The verdicts as aligned plain text."""
    lines = [("a", "b", "a - b", "p (Holm)", "verdict")]
    lines += [(pair.dataset_a, pair.dataset_b, points(pair.shift), p_words(pair.p_holm),
               pair.verdict) for pair in pairs]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), line[1].ljust(widths[1]),
                                line[2].rjust(widths[2]), line[3].rjust(widths[3]), line[4]])
                     for line in lines)
