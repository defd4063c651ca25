#!/usr/bin/env python
"""Compare the datasets' CNNs pairwise by a score: exact rank-sum tests, verdicts, a report.

Reads   RESULTS, a results tree <dataset>/replicate_000/repeat_0000.json made by
        cnn_classify.py, or a CSV with columns dataset,repeat,accuracy[,replicate].
        Compared is the accuracy on the real test images, or any score that all results have.
Writes  OUTPUT/accuracies.csv       tidy, one line per repeat
        OUTPUT/wilcoxon.csv         one line per pair of datasets
        OUTPUT/accuracy_boxplot.png, accuracy_differences.png
        OUTPUT/report.html          one self-contained page
        OUTPUT/comparison.json      last: present means complete
Prints  the verdict table, then the path of the report.

For every pair: the two-sided Wilcoxon rank-sum (Mann-Whitney U) test with the exact
permutation distribution of the midrank sum, right under ties; the Hodges-Lehmann shift with
the interval that inverts the same test; Vargha and Delaney's A12; and two one-sided rank
tests against a margin, because "no significant difference" is not "equivalent". Adjusted
over the pairs by Holm's method.

The unit of replication is the repeat where there is one replicate, and the replicate (its
mean over repeats) where there are several. With one replicate, a p-value speaks about the one
split and the one trained generator at hand, not about the method that made them.

Mann and Whitney 1947; Streitberg and Roehmel 1986 (the shift algorithm); Hodges and Lehmann
1963; Vargha and Delaney 2000; Schuirmann 1987 (two one-sided tests); Holm 1979.

Running the same command again with the same results changes nothing and ends at once; with
other results or options the comparison is made anew, for it is a view of the results.
Exit statuses: 0 complete, 1 bad data, 2 bad options, 75 stopped, run it again.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

from lungkit.compare import figures, pairs, rank_sum, report, results, scores
from lungkit.compare.pairs import compare, find_warnings
from lungkit.compare.rank_sum import margin_on_grid, n_needed, smallest_p, wilson_interval
from lungkit.data import result
from lungkit.run import cli, faults, files
from lungkit.run.output import lock
from lungkit.run.system_files import listed

SCHEMA = "lungkit.comparison/1"
ALPHA = 0.05
MARGIN = 0.02       # ours: two points of accuracy; state your own before seeing the results


# ------------------------------------------------------------------ files

def input_hash(results_path: Path, sheets_dir: Path | None, options: dict) -> str:
    """SHA-256 over every input file's name and content, the options, and the code of this view."""
    paths = results.result_paths(results_path)
    paths += listed(sheets_dir, "*.png") if sheets_dir else []
    paths += [report.TEMPLATE, *(Path(module.__file__) for module in (
        sys.modules[__name__], result, results, scores, rank_sum, pairs, report, figures))]
    lines = [f"{path}\0{files.sha256_file(path)}" for path in paths]
    return files.sha256("\n".join([SCHEMA, repr(sorted(options.items())), *lines]).encode())


def complete_manifest(output: Path, inputs: str) -> dict | None:
    """The manifest, if `output` holds, unaltered, the comparison of these inputs."""
    path = output / "comparison.json"
    if not path.exists():
        return None
    manifest = files.read_json(path)
    whole = manifest.get("inputs") == inputs and all(
        (output / name).is_file() and files.sha256_file(output / name) == sha256
        for name, sha256 in manifest["files"].items())
    return manifest if whole else None


def publish(output: Path, contents: dict[str, bytes], manifest: dict) -> None:
    """Write every file whole, the manifest last."""
    with lock(output):
        for name, content in contents.items():
            files.write_bytes(output / name, content)
        files.write_json(output / "comparison.json", {
            "schema": SCHEMA, **manifest,
            "files": {name: files.sha256(content) for name, content in contents.items()}})


# ------------------------------------------------------------------ the stage

def run(*, results_path: Path, output: Path, metric: str | None, repeats: int | None, alpha: float,
        margin: float, datasets: list[str] | None, sheets: Path | None, dry_run: bool) -> None:
    """Read, test, draw, publish, print."""
    check_options(results_path, output, metric, alpha, margin, sheets)
    options = {"metric": metric, "repeats": repeats, "alpha": alpha, "margin": margin,
               "datasets": datasets}
    inputs = input_hash(results_path, sheets, options)
    done = complete_manifest(output, inputs)
    if done and not dry_run:
        print(f"{done['verdict_table']}\nalready complete: {output / 'report.html'}")
        return

    found = results.read_results(results_path, datasets=datasets, num_repeats=repeats)
    metric = scores.choose(metric, found.metrics)
    unit, step = "repeat" if len(found.replicates) == 1 else "replicate", found.step(metric)
    values = {name: found.values(name, metric) for name in found.datasets}
    if dry_run:
        print_plan(values, unit, metric, alpha, output)
        return

    pairs = compare(values, metric=metric, unit=unit, alpha=alpha, margin=margin,
                    margin_tested=margin_on_grid(margin, step),
                    grid=0 if results_path.is_file() else step)
    arms = report.summarise(found, metric, wilson_interval)
    warnings = find_warnings(found, arms, pairs, metric=metric, alpha=alpha, margin=margin)
    table = report.verdict_table(pairs)
    publish(output, report.contents(found, metric, arms, pairs, alpha=alpha, margin=margin,
                                    warnings=warnings, sheets_dir=sheets),
            {"inputs": inputs, "options": options, "metric": metric, "unit": unit,
             "warnings": warnings, "arms": arms, "verdict_table": table,
             "pairs": [{name: None if isinstance(value, float) and math.isinf(value) else value
                        for name, value in asdict(pair).items()} for pair in pairs]})
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{table}\nreport: {output / 'report.html'}")


def check_options(results_path: Path, output: Path, metric: str | None, alpha: float,
                  margin: float, sheets: Path | None) -> None:
    """Raise BadOptions for options that cannot be meant."""
    if results_path.is_dir() and output.resolve().is_relative_to(results_path.resolve()):
        raise faults.BadOptions(f"--output {output} lies inside {results_path}: choose another")
    if output.exists() and not output.is_dir():
        raise faults.BadOptions(f"--output {output} is a file, not a directory")
    if results_path.is_file() and metric:
        raise faults.BadOptions("--metric chooses a score of a results tree; a CSV has only one")
    if not results_path.is_file() and not results.record_paths(results_path):
        scores.choose(metric, scores.known())  # a misspelt one ends before any training
    if not 0 < alpha < 0.5:
        raise faults.BadOptions(f"--alpha {alpha:g} is not between 0 and 0.5")
    if not 0 < margin < 1:
        raise faults.BadOptions(f"--margin {margin:g} is not between 0 and 1 (0.02 is two points)")
    if sheets and not sheets.is_dir():
        raise faults.BadOptions(f"--sheets {sheets} is not a directory")


def print_plan(values: dict[str, list[float]], unit: str, metric: str, alpha: float,
               output: Path) -> None:
    """Print what would be tested, and whether this n can give an answer."""
    n, num_pairs = len(next(iter(values.values()))), math.comb(len(values), 2)
    needed = n_needed(num_pairs, alpha)
    print(f"found {len(values)} datasets ({', '.join(values)}) with n = {n} {unit}s of {metric}\n"
          f"{num_pairs} pairs; smallest p {smallest_p(n, n):.2g}, after Holm "
          f"{min(1, num_pairs * smallest_p(n, n)):.2g}; significance at {alpha:g} needs n >= "
          f"{needed}{'' if n >= needed else ': out of reach'}\n"
          f"would write {output / 'report.html'}")


def build_parser():
    parser = cli.stage_parser("wilcoxon_test.py", __doc__)
    main_group = parser.add_argument_group("Main")
    main_group.add_argument("results_path", type=cli.directory, metavar="RESULTS",
                            help="results tree, or CSV with columns dataset,repeat,accuracy")
    main_group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                            help="directory of the comparison")
    main_group.add_argument("--metric", metavar="NAME",
                            help="score to compare: accuracy, balanced_accuracy, auroc, ..., on "
                                 "the real test images or, as NAME_own, on the dataset's own "
                                 "(default: accuracy_real; a CSV has one accuracy)")
    main_group.add_argument("--datasets", nargs="+", metavar="NAME",
                            help="datasets to compare (default: all in RESULTS)")
    main_group.add_argument("--repeats", type=cli.positive_int, metavar="N",
                            help="use the first N repeats (default: all)")
    test_group = parser.add_argument_group("Tests")
    test_group.add_argument("--alpha", type=cli.positive_float, default=ALPHA, metavar="P",
                            help="significance level, kept over all pairs by Holm's method")
    test_group.add_argument("--margin", type=cli.positive_float, default=MARGIN, metavar="SCORE",
                            help="equivalence margin in the score, 0.02 is two points")
    output_group = parser.add_argument_group("Output")
    output_group.add_argument("--sheets", type=cli.directory, metavar="DIR",
                              help="contact sheets <dataset>.png to show in the report "
                                   "(default: none)")
    cli.add_common(parser, seed=False, device=False, overwrite=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
