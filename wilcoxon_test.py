#!/usr/bin/env python
"""Compare the datasets' CNNs by a score: what may be said of real patients, and of methods.

Reads   RESULTS, a results tree <dataset>/replicate_000/repeat_0000.json and .npz made by
        cnn_classify.py, or a CSV with columns dataset,repeat,accuracy[,replicate].
        Compared is the accuracy on the real test images, or any score that all results have.
Writes  OUTPUT/noninferiority.csv   each synthetic arm against real: margin, interval, Holm
        OUTPUT/levels.csv           every pair at every level that the data reach
        OUTPUT/arms.csv, classes.csv, sizes.csv, confusion.csv, components.csv   each arm closely
        OUTPUT/controls.csv, morphology.csv   sets of a known truth: did the instrument pass?
        OUTPUT/dose.csv, worth.csv  mixtures with real, and what an arm's images are worth
        OUTPUT/fidelity.csv         how like real each arm's images are, where it was measured
        OUTPUT/memorisation.csv     how many of them are copies of training images
        OUTPUT/wilcoxon.csv         one line per pair of datasets, rank-sum tests
        OUTPUT/accuracies.csv       tidy, one line per repeat
        OUTPUT/looks.csv, power.csv the plan and every look beyond it, where there is a plan
        OUTPUT/accuracy_boxplot.png, accuracy_differences.png
        OUTPUT/loss.png             how the generators' losses fell, with --models
        OUTPUT/report.html          one self-contained page
        OUTPUT/comparison.json      last: present means complete
Prints  the answer, the table of all pairs, then the path of the report.

An answer says at which level it holds:

  A  these trainings on these test images: only the CNNs' seeds vary
  B  this generated set, for new patients: test groups and trainings are both samples
     (crossed variance components; 10 test groups a class or more)
  C  this method, for new patients and new trainings: replicates are blocks, with splits and
     generator trainings of their own (3 or more)

Means decide: each synthetic arm is asked whether it is worse than real by the margin or more
(one-sided at alpha / 2, Holm over these arms), all other pairs are a second family, baselines and
--controls stand outside both. Beside them for every pair, always: the two-sided Wilcoxon rank-sum
(Mann-Whitney U) test with the exact permutation distribution of the midrank sum, right under ties;
the Hodges-Lehmann shift with the interval that inverts the same test; Vargha and Delaney's A12.

Mann and Whitney 1947; Streitberg and Roehmel 1986; Hodges and Lehmann 1963; Vargha and Delaney
2000; Schuirmann 1987 (two one-sided tests); Holm 1979; Gallas 2006, Hillis 2014 (crossed readers
and cases); Owen 2007 (crossed bootstrap); Nadeau and Bengio 2003 (overlapping training sets).

Running the same command again with the same results changes nothing and ends at once; with
other results or options the comparison is made anew, for it is a view of the results.
Exit statuses: 0 complete, 1 bad data, 2 bad options, 75 stopped, run it again.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

from lungkit.compare import (
    csv_tables,
    curves,
    explained as explanations,
    likeness,
    memory,
    report,
    results,
    scores,
)
from lungkit.compare.answer import Comparison, plain
from lungkit.compare.pairs import compare, rank_cautions
from lungkit.compare.rank_sum import margin_on_grid, n_needed, smallest_p
from lungkit.data import result
from lungkit.run import cli, faults, files
from lungkit.run.output import lock
from lungkit.run.system_files import listed

SCHEMA = "lungkit.comparison/2"
ALPHA = 0.05
CODE = sorted(Path(report.__file__).parent.glob("*.py"))  # another view of the same results
MARGIN = 0.02       # ours: two points of accuracy; state your own before seeing the results


# ------------------------------------------------------------------ files

def input_hash(results_path: Path, sheets_dir: Path | None, fidelity_dirs: list[Path],
               models_dir: Path | None, explained: list[Path], options: dict) -> str:
    """SHA-256 over every input file's name and content, the options, and the code of this view."""
    paths = results.result_paths(results_path)
    paths += listed(sheets_dir, "*.png") if sheets_dir else []
    for folder in fidelity_dirs:
        paths += [path for name in (likeness.FILE, memory.MANIFEST, memory.PICTURE)
                  for path in listed(folder, f"*/{name}")]
    paths += listed(models_dir, f"*/*/{curves.FILE}") if models_dir else []
    paths += explanations.paths(explained)
    if results_path.is_dir():
        paths += [path.with_suffix(".npz") for path in paths if path.with_suffix(".npz").is_file()]
    paths += [report.TEMPLATE, Path(__file__), Path(result.__file__), *CODE]
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
    """Write every file whole, the manifest last, and take away what it named and no longer does."""
    path = output / "comparison.json"
    with lock(output):
        before = files.read_json(path).get("files", {}) if path.exists() else {}
        for name, content in contents.items():
            files.write_bytes(output / name, content)
        files.write_json(path, {
            "schema": SCHEMA, **manifest,
            "files": {name: files.sha256(content) for name, content in contents.items()}})
        for name in before.keys() - contents.keys():
            (output / Path(name).name).unlink(missing_ok=True)


# ------------------------------------------------------------------ the stage

def run(*, results_path: Path, output: Path, metric: str | None, repeats: int | None,
        replicates: int | None, alpha: float | None, margin: float | None,
        datasets: list[str] | None, controls: list[str], benign: str | None, plan: Path | None,
        sheets: Path | None, fidelity: list[Path], models: Path | None,
        explained: list[Path], dry_run: bool) -> None:
    """Read, test, decide, draw, publish, print."""
    from lungkit.compare import plan as plans  # reads datasets, which --help must not wait for

    planned = plans.read(plan) or {} if plan else {}
    metric = metric or planned.get("metric")
    alpha, margin = alpha or planned.get("alpha", ALPHA), margin or planned.get("margin", MARGIN)
    check_options(results_path, output, metric, alpha, margin,
                  [("sheets", sheets), ("models", models),
                   *(("fidelity", each) for each in fidelity),
                   *(("explained", each) for each in explained)])
    options = {"metric": metric, "repeats": repeats, "alpha": alpha, "margin": margin,
               "datasets": datasets, "controls": controls, "benign": benign,
               "replicates": replicates, "plan": bool(planned)}
    inputs = input_hash(results_path, sheets, fidelity, models, explained, options)
    done = complete_manifest(output, inputs)
    if done and not dry_run:
        print(f"{done['printed']}\nalready complete: {output / 'report.html'}")
        return

    found = results.read_results(results_path, datasets=datasets, num_repeats=repeats,
                                 num_replicates=replicates)
    benign = benign or found.benign
    if benign:
        found.add_tumour_scores(benign)
    metric = scores.choose(metric, found.metrics)
    values = {name: found.values(name, metric) for name in found.datasets}
    if dry_run:
        print_plan(values, found.unit, metric, alpha, output)
        return

    step = found.step(metric)
    tests = compare(values, metric=metric, unit=found.unit, alpha=alpha, margin=margin,
                    margin_tested=margin_on_grid(margin, step),
                    grid=0 if results_path.is_file() else step)
    arms = [name for name in found.datasets if name not in found.baselines]
    looked = plans.note_look(
        plan, metric=metric, margin=margin, alpha=alpha, repeats=len(found.repeats),
        replicates=len(found.replicates), arms=arms) if plan else None
    comparison = conclude(results_path, found, tests, metric, benign=benign, alpha=alpha,
                          margin=margin, controls=controls, plan=looked)
    printed = "\n".join([*comparison.answer, "", report.verdict_table(comparison.pairs)])
    also = [str(each) for each in comparison.warnings if not each.limits]
    contents = {name: text.encode() for name, text in csv_tables.csv_files(comparison).items()}
    contents |= report.contents(found, comparison, tests, sheets, likeness.read(fidelity, found),
                                models, memory.read(fidelity, found),
                                explanations.read(explained, found))
    publish(output, contents, {
        **comparison.to_json(), "inputs": inputs, "options": options, "unit": found.unit,
        "printed": printed, "tests": [plain(asdict(test)) for test in tests]})
    for warning in also:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{printed}\nreport: {output / 'report.html'}")


def conclude(results_path: Path, found: results.Results, tests: list, metric: str, *,
             benign: str | None, alpha: float, margin: float, controls: list[str],
             plan: dict | None) -> Comparison:
    """Decide every pair, by test group where the results say what was answered of which."""
    from lungkit.compare import conclude as conclusion, dose, evidence as answers, instrument

    evidence, missing = None, None
    try:
        evidence = answers.read_evidence(results_path, found, metric, benign)
    except answers.NoEvidence as reason:
        missing = str(reason)
    comparison = conclusion.conclude(found, tests, metric, evidence, missing, alpha=alpha,
                                     margin=margin, outside=controls, plan=plan)
    comparison.warnings += rank_cautions(tests, alpha)
    comparison.controls, comparison.morphology = instrument.judge(
        results_path, found, metric, benign, alpha=alpha, margin=margin)
    comparison.answer[1:1] = instrument.lines(comparison.controls, comparison.morphology)
    comparison.curve, comparison.worth = dose.curve(
        results_path, found, metric, benign, alpha=alpha, margin=margin)
    comparison.answer += dose.lines(comparison.worth, alpha)
    sentences = {frozenset((pair.arm, pair.against)): pair.sentence for pair in comparison.pairs}
    for test in tests:
        test.verdict = sentences[frozenset((test.dataset_a, test.dataset_b))] or "no verdict"
    return comparison


def check_options(results_path: Path, output: Path, metric: str | None, alpha: float,
                  margin: float, folders: list[tuple[str, Path | None]]) -> None:
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
    for name, folder in folders:
        if folder and not folder.is_dir():
            raise faults.BadOptions(f"--{name} {folder} is not a directory")


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
    main_group.add_argument("--controls", nargs="+", default=[], metavar="NAME",
                            help="datasets that stand outside both families, as baselines do")
    main_group.add_argument("--benign", metavar="CLASS",
                            help="the class that is no tumour, for --metric sensitivity and "
                                 "specificity (default: as nuclei_classify.py was told)")
    main_group.add_argument("--repeats", type=cli.positive_int, metavar="N",
                            help="use the first N repeats (default: all)")
    main_group.add_argument("--replicates", type=cli.positive_int, metavar="R",
                            help="use the first R replicates (default: all)")
    main_group.add_argument("--plan", type=Path, metavar="FILE",
                            help="plan.json of lungkit.compare.plan: its metric, margin and level "
                                 "hold where none are given, and another look is added to it")
    test_group = parser.add_argument_group("Tests")
    test_group.add_argument("--alpha", type=cli.positive_float, metavar="P",
                            help="significance level, kept over all pairs by Holm's method "
                                 f"(default: the plan's, else {ALPHA})")
    test_group.add_argument("--margin", type=cli.positive_float, metavar="SCORE",
                            help="equivalence margin in the score, 0.02 is two points (default: "
                                 f"the plan's, else {MARGIN})")
    output_group = parser.add_argument_group("Output")
    output_group.add_argument("--sheets", type=cli.directory, metavar="DIR",
                              help="contact sheets <dataset>.png to show in the report "
                                   "(default: none)")
    output_group.add_argument("--fidelity", type=cli.directory, metavar="DIR", nargs="+",
                              default=[], help="folders of the datasets of replicate 0, 1, ..., "
                              "whose fidelity.json and copies of training images to show in the "
                              "report (default: none)")
    output_group.add_argument("--explained", type=cli.directory, metavar="DIR", nargs="+",
                              default=[],
                              help="folders that cnn_explain.py and outliers.py wrote, to show in "
                                   "the report (default: none)")
    output_group.add_argument("--models", type=cli.directory, metavar="DIR",
                              help="folder of the generators' models, whose losses by step to "
                                   "show in the report (default: none)")
    cli.add_common(parser, seed=False, device=False, overwrite=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
