#!/usr/bin/env python
"""Compare the datasets' CNN accuracies pairwise: exact rank-sum tests, verdicts, a report.

Reads   RESULTS, a results tree <dataset>/replicate_000/repeat_0000.json made by
        cnn_classify.py, or a CSV with columns dataset,repeat,accuracy[,replicate].
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
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from lungkit.compare import figures, report, results
from lungkit.run import cli, files

SCHEMA = "lungkit.comparison/1"
REFERENCE = "real"  # the dataset the others are measured against, where it is among them
ALPHA = 0.05
MARGIN = 0.02       # ours: two points of accuracy; state your own before seeing the results
EXACT_LIMIT = 200   # n_a + n_b up to which the distribution is exact (half a second each there)
TIE_TOLERANCE = 1e-9  # 0.9 - 0.85 and 0.85 - 0.8 differ in the last bit, yet are one tie


# ------------------------------------------------------------------ the rank-sum test

@dataclass(frozen=True)
class RankSum:
    """One rank-sum test of a against b."""

    u: float           # pairs with a above b, ties counted half
    p_greater: float   # one-sided: a tends to be above b
    p_less: float
    p_two_sided: float  # twice the smaller tail, at most 1
    p_smallest: float   # the smallest two-sided p any allotment of these values can give
    exact: bool


def doubled_midranks(values):
    """Twice the midrank of each value: integers, also under ties."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    new_value = np.diff(np.asarray(values)[order]) > TIE_TOLERANCE
    group = np.concatenate([[0], np.cumsum(new_value)])
    last = np.cumsum(np.bincount(group))
    doubled = np.empty(len(order), dtype=np.int64)
    doubled[order] = (last - np.bincount(group) + 1 + last)[group]
    return doubled


@lru_cache(maxsize=64)
def subset_sum_counts(scores: tuple[int, ...], size: int):
    """How many subsets of `size` of these sorted scores have sum 0, 1, 2, ...

    The shift algorithm (Streitberg and Roehmel 1986): a score either shifts a sum or does not.
    Float64 holds the counts exactly up to 2^53 and to 13 digits beyond.
    """
    import numpy as np

    counts = np.zeros((size + 1, sum(scores[len(scores) - size:]) + 1))
    counts[0, 0] = 1
    for i, score in enumerate(scores):
        low = max(1, size - (len(scores) - 1 - i))  # smaller subsets can no longer be filled
        high = min(size, i + 1)
        width = sum(scores[i + 1 - high:i + 1]) + 1
        counts[low:high + 1, score:width] += counts[low - 1:high, :width - score]
    return counts[size].copy()  # a view would keep the whole table


def rank_sum_test(a, b) -> RankSum:
    """Test whether a and b come from one distribution, given the pooled values with their ties."""
    import numpy as np

    doubled = doubled_midranks(np.concatenate([a, b]))
    num_a, num_b = len(a), len(b)
    total = num_a + num_b
    u = (int(doubled[:num_a].sum()) - num_a * (num_a + 1)) / 2
    if total <= EXACT_LIMIT:
        scores = doubled - doubled.min()
        step = max(1, int(np.gcd.reduce(scores)))
        scores //= step
        counts = subset_sum_counts(tuple(np.sort(scores).tolist()), num_a)
        observed, possible = int(scores[:num_a].sum()), counts.nonzero()[0]
        subsets = counts.sum()
        p_less, p_greater = counts[:observed + 1].sum() / subsets, counts[observed:].sum() / subsets
        extreme = min(counts[possible[0]], counts[possible[-1]]) / subsets
    else:
        ties = np.unique(doubled, return_counts=True)[1].astype(float)
        variance = num_a * num_b / 12 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
        sd = math.sqrt(variance)

        def upper_tail(distance: float) -> float:
            """Normal, with continuity and tie correction."""
            return 0.5 * math.erfc((distance - 0.5) / sd / math.sqrt(2)) if sd else 1.0

        mean = num_a * num_b / 2
        p_greater, p_less, extreme = (upper_tail(u - mean), upper_tail(mean - u), upper_tail(mean))
    return RankSum(u, float(p_greater), float(p_less), min(1.0, float(2 * min(p_less, p_greater))),
                   min(1.0, float(2 * extreme)), total <= EXACT_LIMIT)


def shift_with_interval(a, b, alpha: float, grid: float = 0) -> tuple[float, float, float]:
    """Hodges-Lehmann shift a - b and the interval of shifts the two-sided test does not reject.

    A larger assumed shift lowers the ranks of a and raises those of b, so it can only raise
    P(sum >= observed) for every allotment: the one-sided p is monotone in the shift, with ties
    too, the set is an interval, and bisection over the pairwise differences finds its end.
    An end that no data of this size could exclude is infinite.

    grid: the step between possible values, 0 where there is none. On a grid only its points are
    tested and each stands for the half step around it; shifts between two points would break
    all ties of one of them (coverage 87 % instead of 95 % with 60 images and n = 10).
    """
    import numpy as np

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    differences = np.sort(np.subtract.outer(a, b).ravel())
    return (float(np.median(differences)), _lowest_kept_shift(a, b, alpha, grid),
            -_lowest_kept_shift(b, a, alpha, grid))


def _lowest_kept_shift(a, b, alpha: float, grid: float) -> float:
    """The infimum of the shifts d at which "a - d is above b" has one-sided p > alpha / 2."""
    import numpy as np

    points = np.sort(np.subtract.outer(a, b).ravel())
    points = points[np.concatenate([[True], np.diff(points) > TIE_TOLERANCE])]

    def kept(place: int) -> bool:
        """Odd places are the points, even ones the gaps below, between and above them."""
        index = place // 2
        if place % 2:
            shift = points[index]
        elif place == 0:
            shift = points[0] - 1
        elif index == len(points):
            shift = points[-1] + 1
        else:
            shift = (points[index - 1] + points[index]) / 2
        return rank_sum_test(a - shift, b).p_greater > alpha / 2

    if kept(0):
        return -math.inf
    rejected, accepted = 0, 2 * len(points)  # above every point p is 1
    while accepted - rejected > 1:
        middle = (rejected + accepted) // 2
        rejected, accepted = (rejected, middle) if kept(middle) else (middle, accepted)
    # kept from a point on, or from the gap above a point: there the grid's next point is the first
    return float(points[(accepted - 1) // 2]) + (grid / 2 if accepted % 2 == 0 else -grid / 2)


def margin_on_grid(margin: float, step: float) -> float:
    """The largest whole number of steps within the margin; step 0 means no grid.

    Accuracies are whole numbers of test images. A margin between two of them would break the
    ties at the next lower one in favour of equivalence: with 60 images and 2 points, 14 to 26 %
    of samples that far apart were called equivalent instead of 5 % (benchmarks/rank_sum_size.txt
    has both). By the monotonicity above a smaller margin only errs on the safe side.
    """
    return math.floor(margin / step + 1e-6) * step if step else margin


def margin_tests(a, b, margin: float) -> tuple[float, float]:
    """p that a is not worse than b by `margin` or more, and the same of b against a.

    Both small: equivalent (two one-sided tests, Schuirmann 1987), for shifted distributions.
    """
    import numpy as np

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return rank_sum_test(a + margin, b).p_greater, rank_sum_test(b + margin, a).p_greater


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the given order."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def smallest_p(num_a: int, num_b: int) -> float:
    """The smallest two-sided p of the exact test without ties: complete separation."""
    return min(1.0, 2 / math.comb(num_a + num_b, num_a))


def n_needed(num_pairs: int, alpha: float) -> int:
    """The smallest n per dataset at which complete separation is significant after Holm."""
    n = 2
    while smallest_p(n, n) * num_pairs > alpha:
        n += 1
    return n


def wilson_interval(share: float, num_images: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (1927)."""
    middle = (share + z * z / (2 * num_images)) / (1 + z * z / num_images)
    half = z / (1 + z * z / num_images) * math.sqrt(
        share * (1 - share) / num_images + z * z / (4 * num_images**2))
    return max(0.0, middle - half), min(1.0, middle + half)


# ------------------------------------------------------------------ all pairs, in words

@dataclass
class Pair:
    """One line of wilcoxon.csv. Shifts are a - b, in accuracy (0.02 is two points)."""

    dataset_a: str
    dataset_b: str
    metric: str
    unit: str            # what one value is: repeat or replicate
    n_a: int
    n_b: int
    median_a: float
    median_b: float
    u: float
    p: float
    p_holm: float
    method: str
    shift: float
    shift_low: float
    shift_high: float
    confidence: float    # of shift_low..shift_high, not adjusted for the number of pairs
    a12: float           # P(a above b) + P(tie) / 2
    p_smallest: float            # attainable at this n with these ties
    p_smallest_without_ties: float
    can_reach_alpha: bool        # after Holm, were every pair as far apart as it can be
    n_needed: int                # without ties; it makes significance possible, not likely
    margin: float
    margin_tested: float         # the margin in whole test images
    p_a_not_worse: float
    p_b_not_worse: float
    p_equivalent: float          # the larger of the two
    p_equivalent_holm: float
    p_b_not_worse_holm: float | None  # over the pairs with the reference; None for other pairs
    verdict: str = ""


def compare(values: dict[str, list[float]], *, metric: str, unit: str, alpha: float,
            margin: float, margin_tested: float | None = None, grid: float = 0) -> list[Pair]:
    """Test every pair of datasets; `values` holds one number per unit of replication.

    margin_tested: None means the margin as it is. grid: of the values, 0 means none or not known.
    """
    import numpy as np

    names, pairs = list(values), []
    margin_tested = margin if margin_tested is None else margin_tested
    for i, name_a in enumerate(names):
        for name_b in names[i + 1:]:
            cli.check_stop()
            a, b = np.asarray(values[name_a], float), np.asarray(values[name_b], float)
            test = rank_sum_test(a, b)
            shift, low, high = shift_with_interval(a, b, alpha, grid)
            not_worse = margin_tests(a, b, margin_tested)
            pairs.append(Pair(
                name_a, name_b, metric, unit, len(a), len(b), float(np.median(a)),
                float(np.median(b)), test.u, test.p_two_sided, math.nan,
                "exact" if test.exact else "normal", shift, low, high, 1 - alpha,
                test.u / (len(a) * len(b)), test.p_smallest, smallest_p(len(a), len(b)), True, 0,
                margin, margin_tested, *not_worse, max(not_worse), math.nan, None))
    holm_p = holm([pair.p for pair in pairs])
    holm_equivalent = holm([pair.p_equivalent for pair in pairs])
    holm_best_case = holm([pair.p_smallest for pair in pairs])
    for pair, p, p_equivalent, best in zip(pairs, holm_p, holm_equivalent, holm_best_case):
        pair.p_holm, pair.p_equivalent_holm = p, p_equivalent
        pair.can_reach_alpha = best <= alpha  # Holm is monotone: no data can do better
        pair.n_needed = n_needed(len(pairs), alpha)
    against_reference = [pair for pair in pairs if pair.dataset_a == REFERENCE]
    for pair, p in zip(against_reference, holm([q.p_b_not_worse for q in against_reference])):
        pair.p_b_not_worse_holm = p
    for pair in pairs:
        pair.verdict = verdict(pair, alpha)
    return pairs


def verdict(pair: Pair, alpha: float) -> str:
    """What the pair shows, in one sentence."""
    a, b, margin = pair.dataset_a, pair.dataset_b, f"{100 * pair.margin:g}"
    interval = report.interval_in_words(pair)
    equivalent = pair.p_equivalent_holm <= alpha
    if pair.p_holm <= alpha:
        higher, lower = (a, b) if pair.a12 > 0.5 else (b, a)
        text = f"{higher} scores higher than {lower} ({interval})"
        return text + (f", by less than {margin} points" if equivalent else "")
    if equivalent:
        return f"equivalent within ±{margin} points ({interval})"
    # alpha / 2: one-sided, so that it never contradicts the two-sided interval (ICH E9, 1998)
    if pair.p_b_not_worse_holm is not None and pair.p_b_not_worse_holm <= alpha / 2:
        return f"{b} is not worse than {a} by {margin} points or more ({interval})"
    n = f"n = {pair.n_a}" if pair.n_a == pair.n_b else f"n = {pair.n_a} and {pair.n_b}"
    if not pair.can_reach_alpha:
        if max(pair.n_a, pair.n_b) < pair.n_needed:
            return f"cannot reach significance at this n ({n}, needs {pair.n_needed}; {interval})"
        return f"cannot reach significance: too many tied values ({n}; {interval})"
    return f"no difference shown; the data cannot tell ({n}, {interval})"


def find_warnings(found: results.Results, arms: list[dict], pairs: list[Pair], *, metric: str,
                  alpha: float, margin: float) -> list[str]:
    """What a reader must know before the verdicts, each named; the results' own warnings last."""
    warnings = []
    if len(found.replicates) == 1:
        warnings.append(
            "one replicate: every p-value speaks about this one split of the real images and this "
            "one training of each generator, not about the methods; more repeats do not cure it, "
            "whole-pipeline replicates (another split, another generator seed) do")
    if metric == "accuracy_own":
        warnings.append("own test images: each CNN is tested on its own kind of image; nothing "
                        "here says how it does on real patients (that is accuracy_real)")
    out_of_reach = [pair for pair in pairs if not pair.can_reach_alpha]
    few = [pair for pair in out_of_reach if pair.n_a < pair.n_needed]
    if few:
        warnings.append(
            f"n too small: {len(few)} of {len(pairs)} pairs cannot be significant at {alpha:g} "
            f"after Holm with n = {few[0].n_a}; n >= {few[0].n_needed} "
            f"{few[0].unit}s make it possible, not likely")
    if len(out_of_reach) > len(few):
        warnings.append(
            f"too many ties: {len(out_of_reach) - len(few)} of {len(pairs)} pairs cannot be "
            "significant because most values are equal; a larger test set tells them apart")
    if any(pair.method == "normal" for pair in pairs):
        warnings.append(f"normal approximation: with more than {EXACT_LIMIT} values a pair, p "
                        "comes from the normal distribution with tie correction")
    at_chance = [arm["dataset"] for arm in arms if "num_images" in arm
                 and wilson_interval(arm["mean"], arm["num_images"])[0] <= arm["majority_share"]]
    if at_chance:
        warnings.append(
            f"chance level: {', '.join(at_chance)} cannot be told from always answering the largest "
            "class; a comparison with an arm that learned nothing says nothing")
    if pairs[0].margin_tested == 0:
        warnings.append(
            f"coarse test set: one test image is {100 * found.step(metric):.1f} points, more than "
            f"the margin of {100 * margin:g}; nothing can be shown equivalent")
    return warnings + found.warnings


# ------------------------------------------------------------------ files

def input_hash(results_path: Path, sheets_dir: Path | None, options: dict) -> str:
    """SHA-256 over every input file's name and content, the options, and the code of this view."""
    paths = results.result_paths(results_path)
    paths += sorted(sheets_dir.glob("*.png")) if sheets_dir else []
    paths += [Path(module.__file__) for module in (sys.modules[__name__], results, report, figures)]
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
    with files.lock(output):
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
    metric = metric or found.metrics[0]
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
        raise cli.BadOptions(f"--output {output} lies inside {results_path}: choose another")
    if output.exists() and not output.is_dir():
        raise cli.BadOptions(f"--output {output} is a file, not a directory")
    if results_path.is_file() and metric:
        raise cli.BadOptions("--metric chooses an accuracy of a results tree; a CSV has only one")
    if not 0 < alpha < 0.5:
        raise cli.BadOptions(f"--alpha {alpha:g} is not between 0 and 0.5")
    if not 0 < margin < 1:
        raise cli.BadOptions(f"--margin {margin:g} is not between 0 and 1 (0.02 is two points)")
    if sheets and not sheets.is_dir():
        raise cli.BadOptions(f"--sheets {sheets} is not a directory")


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
    main_group.add_argument("--metric", choices=("accuracy_real", "accuracy_own"),
                            help="accuracy on the real test images or on the dataset's own "
                                 "(default: accuracy_real; a CSV has one accuracy)")
    main_group.add_argument("--datasets", nargs="+", metavar="NAME",
                            help="datasets to compare (default: all in RESULTS)")
    main_group.add_argument("--repeats", type=cli.positive_int, metavar="N",
                            help="use the first N repeats (default: all)")
    test_group = parser.add_argument_group("Tests")
    test_group.add_argument("--alpha", type=cli.positive_float, default=ALPHA, metavar="P",
                            help="significance level, kept over all pairs by Holm's method")
    test_group.add_argument("--margin", type=cli.positive_float, default=MARGIN, metavar="ACCURACY",
                            help="equivalence margin in accuracy, 0.02 is two points")
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
