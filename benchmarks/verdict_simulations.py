"""How often the comparison is wrong, and how often it decides, on runs of a known truth.

    python benchmarks/verdict_simulations.py [--runs 400] > benchmarks/verdict_simulations.txt
    python benchmarks/verdict_simulations.py --only worse power        some of its sections

Every run is a results tree of the real format (tests/simulated_results.py), judged as
wilcoxon_test.py judges it; the first of each line is also written and judged by the stage itself,
whose words must be the same. Accuracies are 85 % unless a line says otherwise, margin 2 points, 20
repeats, and 30 where "equivalent" or "not worse" may be said, which needs 29 trainings an arm. A
share over `runs` runs has a standard error of sqrt(share (1 - share) / runs): 1.1 points at 5 % of
400. Lines that are far from their limits, or take long, have fewer runs, which they say.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import wilcoxon_test  # noqa: E402
from lungkit.compare.answer import BETTER, EQUIVALENT, NOT_WORSE, WORSE  # noqa: E402
from simulated_results import Truth, conclude_of, simulate  # noqa: E402

SMALL = {"classes": 2, "groups": 10, "images": 3}  # 20 test groups of 3 images
LARGE = {"classes": 3, "groups": 30, "images": 5}  # 90 of 5
DIFFERENT, PASSED = {BETTER, WORSE}, {BETTER, EQUIVALENT, NOT_WORSE}
MANY = 30  # trainings an arm: lungkit/compare/limits.py
LOOKS = (6, 10, 15, 20, 30, 50)


def stage_says_the_same(made, comparison) -> bool:
    """Whether wilcoxon_test.py, run on the tree on disk, says every word of the comparison."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        out = Path(folder) / "comparison"
        status = wilcoxon_test.main([str(made.write(Path(folder) / "results")), "--output",
                                     str(out)])
        told = json.loads((out / "comparison.json").read_text())
    return status == 0 and [pair["sentence"] for pair in told["pairs"]] == [
        pair.sentence for pair in comparison.pairs]


def line(name: str, runs: int, truths: dict, judge, **shape) -> None:
    """Simulate `runs` runs and print the share of each thing that `judge` finds in a run."""
    started, counts = time.perf_counter(), Counter()
    for run in range(runs):
        # of its own for each line, which would else share their luck
        made = simulate(truths, seed=zlib.crc32(name.encode()) + run, **shape)
        comparison = conclude_of(made)
        if run == 0 and not stage_says_the_same(made, comparison):
            sys.exit(f"{name}: the stage says something else")
        counts.update(key for key, is_so in judge(comparison).items() if is_so)
        counts.update(["run"])
    told = ", ".join(f"{key} {100 * counts[key] / runs:.1f} %" for key in judge(comparison))
    print(f"{name:58} {told}  ({runs} runs, {(time.perf_counter() - started) / runs:.2f} s each)",
          flush=True)


def two(share: float, accuracy: float = 0.85, level: float = 0.85, **more) -> dict:
    return {"real": Truth(level, arm_group=share), "gan": Truth(accuracy, arm_group=share, **more)}


def of_pair(comparison, level: str):
    [pair] = comparison.pairs
    return pair.estimates[level]


def equal_arms(comparison) -> dict:
    found = of_pair(comparison, "B")
    return {"called different": found.decision in DIFFERENT,
            "the crossed draws' own interval misses 0": not (
                found.drawn_low <= 0 <= found.drawn_high)}


def passed(comparison) -> dict:
    found = of_pair(comparison, "B")
    return {"called equivalent, not worse or better": found.decision in PASSED,
            "equivalent": found.decision == EQUIVALENT}


def equal(runs: int) -> None:
    print("level B, truly equal arms (at most 7 %)")
    for words, shape in (("20 groups x 3 images", SMALL), ("90 groups x 5 images", LARGE)):
        for share in (0.0, 0.05, 0.1, 0.2):
            line(f"{words}, arm x group share {100 * share:g} %", runs, two(share), equal_arms,
                 **shape)


def worse(runs: int) -> None:
    print(f"level B, an arm truly 2 points worse, {MANY} repeats (at most 7 %)")
    for words, shape in (("20 groups x 3 images", SMALL), ("90 groups x 5 images", LARGE)):
        for share in (0.05, 0.1, 0.2):
            line(f"{words}, arm x group share {100 * share:g} %", runs, two(share, 0.83), passed,
                 repeats=MANY, **shape)
    for level in (0.98, 0.995):
        line(f"90 groups x 5 images, 10 %, real at {100 * level:g} %", runs,
             two(0.1, level - 0.02, level), passed, repeats=MANY, **LARGE)


def collapse(runs: int) -> None:
    print(f"level B, trainings that collapse, {MANY} repeats (called equivalent: at most 5 %)")

    def named(found) -> bool:
        return any(each.name == "collapsed training" for each in found.warnings)

    for share in (0.1, 0.2, 0.3):
        line(f"{share * MANY:g} of {MANY} trainings, 90 groups x 5", runs // 2,
             two(0.0, collapsed=round(share * MANY)),
             lambda found: passed(found) | {"named": named(found)}, repeats=MANY, **LARGE)
    for chance in (0.1, 0.2, 0.3):
        line(f"each with a chance of {100 * chance:g} %, 90 groups x 5", runs // 2, two(0.0),
             lambda found: passed(found) | {"no training collapsed": not named(found)},
             collapse=chance, repeats=MANY, **LARGE)


def coverage(runs: int) -> None:
    print("level A, 60 test images, a true difference of 1.25 points (92 to 98 %)")
    for repeats in (20, 50):
        line(f"n = {repeats}", runs, two(0.0, 0.8375), lambda found: {
            "covered": of_pair(found, "A").low <= -0.0125 <= of_pair(found, "A").high},
            alike=True, repeats=repeats, **SMALL)


def draws(runs: int) -> None:
    print("level C, five equal arms of 10 repeats, 6 replicates (any false pair: at most 7 %)")
    for draw in (0.5, 1.0, 2.0):
        truths = {name: Truth(draw=draw * (name != "real")) for name in
                  ("real", "gan", "vae", "flow", "prompt")}
        line(f"deviation of a draw {draw:g} x the seeds'", fewer(runs), truths, lambda found: {
            "any pair called different": any(
                pair.estimates["C"].decision in DIFFERENT for pair in found.pairs)},
            repeats=10, replicates=6, **SMALL)
        line("the same, one replicate of 20 repeats", fewer(runs), truths, lambda found: {
            "any different at level B": any(pair.decision in DIFFERENT for pair in found.pairs),
            "a sentence without its scope": any("With this generated set" not in pair.sentence
                                                for pair in found.pairs)}, **SMALL)


def folds(runs: int) -> None:
    print("level C, five folds x 20 repeats, arms at 95, 80, 70, 60, 50 %")
    for draw in (0.0, 1.0):
        arms = dict(zip(("real", "gan", "vae", "flow", "prompt"),
                        (Truth(level, draw=draw) for level in (0.95, 0.8, 0.7, 0.6, 0.5))))
        line(f"deviation of a draw {draw:g} x the seeds'", runs // 20, arms, lambda found: {
            "all ten pairs decided": all(pair.decision in DIFFERENT for pair in found.pairs),
            "nine or more": sum(pair.decision in DIFFERENT for pair in found.pairs) >= 9,
            "eight or more": sum(pair.decision in DIFFERENT for pair in found.pairs) >= 8},
            replicates=5, groups=100)


def power(runs: int) -> None:
    print(f"power at level B, equal arms, arm x group share 5 %, {MANY} repeats")
    for groups in (30, 100, 300):
        line(f"{3 * groups} groups x 3 images", fewer(runs), two(0.05), passed,
             groups=groups, repeats=MANY)


def fewer(runs: int) -> int:
    return max(20, runs // 8)


def looks(runs: int) -> None:
    """How often any of several looks at growing data finds a false difference, level by level."""
    print(f"looks at {', '.join(map(str, LOOKS))} repeats of equal arms, 20 groups x 3")
    counts, runs = Counter(), fewer(runs)
    plan = {"alpha": 0.05, "looks": [
        {"alpha": 0.05, "changed": [f"repeats {n} for {LOOKS[0]}"]} for n in LOOKS[1:]]}
    for seed in range(runs):
        made = simulate(two(0.0), seed=seed, repeats=LOOKS[-1], **SMALL)
        found = [conclude_of(made, repeats=n, plan=plan) for n in LOOKS]
        counts["level A"] += any(of_pair(each, "A").decision in DIFFERENT for each in found)
        counts["level B"] += any(of_pair(each, "B").decision in DIFFERENT for each in found)
        counts["named above the answer"] += all(
            any(text.startswith("- looks: 6 comparisons were made") for text in each.answer)
            for each in found)
    print(f"{'any false difference':58} " + ", ".join(
        f"{key} {100 * count / runs:.1f} %" for key, count in counts.items()) + f"  ({runs} runs)")


SECTIONS = {each.__name__: each for each in (
    equal, worse, collapse, coverage, draws, folds, looks, power)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args()
    for name in args.only:
        SECTIONS[name](args.runs)


if __name__ == "__main__":
    main()
