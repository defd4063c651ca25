"""Plan a comparison before its first training: what it could show, and what is fixed beforehand.

Reads   REAL, the real dataset, for its test groups (where it is made already)
        RESULTS, the run's own earlier results, for deviations and seconds a training
Writes  OUTPUT, plan.json, once: metric, margin, alpha, N, replicates and families as they are now;
        what is looked at later is added by wilcoxon_test.py --plan, and a plan is never replaced
Prints  smallest p, power at every level, hours

A plan that cannot reach an answer ends with 2 and what would, unless --force: one of a single
replicate whose rank-sum table cannot be significant, and one that at all levels above A that it
reaches (at A, where it reaches no other) would more often than not miss a difference of a quarter
of the scale, and that equal arms are equivalent or not worse.

Power: lungkit.compare.power. Running the same command again leaves the plan as it is, and what was
planned or forced once is not refused again.
Exit statuses: 0 planned, 1 bad data, 2 bad options or a plan without an answer.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

from lungkit.compare import pilot, power, scores
from lungkit.compare.power import Deviations, Size
from lungkit.compare.rank_sum import n_needed
from lungkit.data.dataset import read_rows
from lungkit.data.manifest import MANIFEST, read_manifest
from lungkit.run import cli
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import read_json, write_json
from lungkit.run.output import lock
from lungkit.run.progress import say
from lungkit.run.provenance import origin

SCHEMA = "lungkit.plan/1"
REAL = "real"
METRIC, MARGIN, ALPHA = "accuracy_real", 0.02, 0.05
EFFECT = 0.05     # ours: five points, a difference that one would want to know of
LARGE = 0.25      # ours: a quarter of the scale; who cannot see this can see nothing of use
EVEN = 0.5        # chance below which a plan more often than not gives no answer
MOST = {"repeats": 200, "replicates": 30}  # what is looked at for a plan that would do
# what a look can differ in from the plan, in the order in which it is said
LOOKED = ("metric", "margin", "alpha", "repeats", "replicates", "arms")
# seed and group: of 18 trainings of three of the demo's arms on 75 images of 25 test patients;
# replicate: ours, not measured, as large as that of the trainings
DEFAULT = Deviations(seed=0.03, group=0.27, replicate=0.03, source="by default")


# ------------------------------------------------------------------ what it could show

def why_no_table(size: Size, alpha: float) -> str | None:
    """Why no pair of the rank-sum table can be significant; None where one can be.

    Of several replicates it is of their means, and the answer is given by their intervals.
    """
    table = power.table_p(size)
    if size.replicates > 1 or table <= alpha:
        return None
    return (f"{size.repeats} repeats: no pair of the rank-sum table can be significant "
            f"(smallest p of {size.num_pairs} pairs after Holm {table:.2g}, alpha {alpha:g}): "
            f"{n_needed(size.num_pairs, alpha)} repeats or fewer arms would do")


def why_not(size: Size, of: Deviations, large: float = LARGE, **asked: float) -> str | None:
    """Why no answer is in reach, and what would give one; None where one is.

    asked: alpha, margin and overlap of `power.outcomes`.
    """
    if reason := why_no_table(size, asked["alpha"]):
        return reason
    if _answers(size, of, large, **asked):
        return None
    would = []
    for name, most in MOST.items():
        for count in range(getattr(size, name) + 1, most + 1):
            if _answers(replace(size, **{name: count}), of, large, **asked):
                would.append(f"{name.upper()}={count}")
                break
    return (f"neither a difference of {100 * large:g} points nor that equal arms are not worse "
            f"would be shown in half of such runs (level {' or '.join(_levels(size))}): "
            f"{' or '.join(would) or 'test groups in plenty, or less variable arms,'} would do")


def _levels(size: Size) -> list[str]:
    """Those whose answer a plan is judged by."""
    return size.levels[1:] or size.levels


def _answers(size: Size, of: Deviations, large: float, **asked: float) -> bool:
    shown = [power.chances(level, size, of, effect=large, **asked) for level in _levels(size)]
    return any(each[name] >= EVEN for each in shown
               for name in ("difference", "equivalent", "not_worse"))


def in_words(plan: dict) -> list[str]:
    """The plan for a terminal, a line each."""
    groups, of = plan["groups"], plan["deviations"]
    lines = [f"{plan['metric']}, margin {plan['margin']:g}, alpha {plan['alpha']:g}: "
             f"{plan['repeats']} repeats of {len(plan['arms'])} arms, {plan['replicates']} "
             f"replicate{'s'[:plan['replicates'] > 1]}, test groups " + (", ".join(
                 f"{label} {count}" for label, count in groups.items()) or "not known yet"),
             f"deviations in points: trainings {100 * of['seed']:.2g}, test groups "
             f"{100 * of['group']:.2g}, replicates {100 * of['replicate']:.2g} ({of['source']}; "
             "what is by default is assumed, not measured; test groups are those of one split)"]
    for level, shown in plan["outlook"].items():
        found = shown["detectable"]
        lines.append(
            f"level {level}: chance to show a difference of {100 * EFFECT:g} points "
            f"{shown['difference']:.0%}, equal arms equivalent {shown['equivalent']:.0%}, not "
            f"worse {shown['not_worse']:.0%}; shown 8 times of 10: "
            + (f"{100 * found:.1f} points" if found else "nothing"))
    lines.append(f"rank-sum table: smallest p after Holm {plan['table_p']:.2g}" + (
        f", of sign flips at level C {plan['sign_flip_p']:.2g}" if plan["sign_flip_p"] else ""))
    lines += [f"level {level} needs {needs}" for level, needs in plan["needs"].items()]
    sec = plan["seconds_per_repeat"]
    lines.append(f"{plan['trainings']} trainings: " + (
        f"{plan['trainings'] * sec / 3600:.2g} hours one after another, at {sec:.3g} s each as "
        "measured in this run" if sec else "how long is not known before the first"))
    return lines


# ------------------------------------------------------------------ the file

def make(size: Size, arms: list[str], of: Deviations, *, metric: str, margin: float, alpha: float,
         overlap: float, seconds: float | None, there: int) -> dict:
    """A plan, as plan.json holds it; families are [arm, against] pairs.

    there: results that the run had when it was planned; a plan of none was made beforehand.
    """
    synthetic = [arm for arm in arms if arm != REAL]
    asked = {"alpha": alpha, "margin": margin, "overlap": overlap}
    shown = {level: power.outcomes(level, size, of, effect=EFFECT, **asked)
             for level in size.levels}
    needs = {"B": f"{power.GROUPS_OF_B} or more test groups in every class",
             "C": f"REPLICATES={power.REPLICATES_OF_C}, and {power.REPLICATES_TESTED} to test by "
                  "sign flips"}
    return {"schema": SCHEMA, "metric": metric, "margin": margin, "alpha": alpha,
            "repeats": size.repeats, "replicates": size.replicates, "arms": arms,
            "families": {"primary": [[arm, REAL] for arm in synthetic],
                         "second": [list(pair) for pair in combinations(synthetic, 2)]},
            "groups": size.groups, "deviations": asdict(of), "outlook": shown,
            "needs": {level: text for level, text in needs.items() if level not in shown},
            "table_p": power.table_p(size), "sign_flip_p": power.sign_flip_p(size),
            "seconds_per_repeat": seconds, "results_there": there,
            "trainings": size.repeats * size.replicates * len(arms),
            "out_of_reach": why_not(size, of, **asked),
            "made_at": _now(), "made_by": origin()["command"], "looks": []}


def read(path: Path) -> dict | None:
    """The plan, None where there is none. Raises Fault of what is no plan."""
    if not path.exists():
        return None
    plan = read_json(path)
    missing = [name for name in (*LOOKED, "looks") if name not in plan]
    if plan.get("schema") != SCHEMA or missing:
        raise Fault(f"{path} is no {SCHEMA}" + (f" (no {', '.join(missing)})" if missing else "")
                    + ": move it away to plan anew, and say so where you report")
    return plan


def write_once(path: Path, plan: dict) -> dict:
    """Write the plan unless there is one; the one that holds."""
    with lock(path):
        there = read(path)
        if there is None:
            write_json(path, plan)
    return there or plan


def note_look(path: Path, **now) -> dict:
    """Add a look to the plan unless it is the planned one or was taken before; the plan.

    now: what of LOOKED the look is at. Raises Fault where there is no plan.
    """
    now = {**now, "arms": in_order(now["arms"])}
    with lock(path):
        plan = read(path)
        if plan is None:
            raise Fault(f"{path} is missing: python -m lungkit.compare.plan makes it before the "
                        "first training")
        taken = [{name: each[name] for name in LOOKED} for each in [plan, *plan["looks"]]]
        if now not in taken:
            changed = [f"{name} {_short(now[name])} for {_short(plan[name])}" for name in LOOKED
                       if now[name] != plan[name]]
            plan["looks"].append({**now, "changed": changed, "made_at": _now()})
            write_json(path, plan)
    return plan


def cost(plan: dict) -> float:
    """The most that the chance of any false difference can be, over the plan and all its looks.

    Bonferroni: each look adds its own alpha, whatever the looks share.
    """
    return min(1.0, math.fsum(each["alpha"] for each in [plan, *plan["looks"]]))


def looks_in_words(plan: dict) -> str | None:
    """What a reader must know of how the plan was kept; None where it was."""
    said = []
    if plan.get("results_there"):
        said.append(f"planned after {plan['results_there']} results were there")
    if plan["looks"]:
        said.append(f"{1 + len(plan['looks'])} comparisons were made, as planned and by "
                    f"{'; '.join(', '.join(look['changed']) for look in plan['looks'])}: the "
                    f"chance of any false difference is up to {cost(plan):.0%} over all of them")
    return ". ".join(said) or None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def in_order(arms: list[str]) -> list[str]:
    """Each once, real first: the order in which they were named makes no other comparison."""
    return sorted(dict.fromkeys(arms), key=lambda name: (name != REAL, name))


def _short(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value}"


# ------------------------------------------------------------------ the command

def test_groups(real: Path) -> tuple[dict[str, int], float]:
    """Test groups by class of the real dataset, and test images per training image.

    ({}, 0) where it is not made yet. An image without a group is its own.
    """
    if not (real / MANIFEST).exists():
        return {}, 0.0
    counts = read_manifest(real)["counts"]
    groups: dict[str, set] = {}
    for row in read_rows(real):
        if row.split == "test":
            groups.setdefault(row.label, set()).add(row.group or row.file_name)
    return ({label: len(found) for label, found in sorted(groups.items())},
            sum(counts["test"].values()) / sum(counts["train"].values()))


def run(*, results: Path, real: Path, arms: list[str], baselines: list[str], repeats: int,
        replicates: int, metric: str | None, margin: float | None, alpha: float | None,
        output: Path, force: bool, dry_run: bool) -> None:
    """Read, reckon, say, refuse or write."""
    there = read(output) or {}
    metric = scores.choose(metric or there.get("metric"), scores.known())
    margin = margin or there.get("margin", MARGIN)
    alpha = alpha or there.get("alpha", ALPHA)
    if not margin < 1 or not alpha < 0.5:
        raise BadOptions(f"--margin {margin:g} --alpha {alpha:g}: a margin is below 1 (0.02 is two "
                         "points), a level below 0.5")
    arms = in_order(arms)
    groups, overlap = test_groups(real)
    size = Size(repeats, replicates, groups, sum(arm != REAL for arm in arms),
                math.comb(len(arms) + len(baselines), 2))
    found = pilot.read(results, arms)
    of = pilot.deviations(found, metric, DEFAULT, size.effective_groups)
    plan = make(size, arms, of, metric=metric, margin=margin, alpha=alpha, overlap=overlap,
                seconds=pilot.seconds_per_repeat(found), there=pilot.count(found))
    for line in in_words(plan):
        say(f"plan: {line}")
    # a run that was let begin goes on: what its own results say of deviations comes too late
    reason = why_no_table(size, alpha) if there else plan["out_of_reach"]
    if reason and not force and not all(there.get(name) == plan[name] for name in LOOKED):
        raise BadOptions(f"this plan cannot reach an answer: {reason}, and FORCE=1 (--force) goes "
                         "on without")
    if plan["out_of_reach"]:
        say(f"plan: warning: this plan cannot reach an answer: {plan['out_of_reach']}")
    if dry_run:
        return
    holds = write_once(output, plan)
    if holds is not plan:
        say(f"plan: {output} of {holds['made_at']} holds; what differs from it counts as a look")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("python -m lungkit.compare.plan", __doc__)
    parser.add_argument("--results", type=cli.directory, required=True, metavar="DIR",
                        help="results tree of the run; it may not be there yet")
    parser.add_argument("--real", type=cli.directory, required=True, metavar="DIR",
                        help="the real dataset; it may not be there yet")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE",
                        help="the plan, comparison/plan.json of a run")
    parser.add_argument("--arms", nargs="+", required=True, metavar="NAME",
                        help="datasets to compare, real among them, without baselines")
    parser.add_argument("--baselines", nargs="+", default=[], metavar="NAME",
                        help="classical baselines, further lines of the rank-sum table")
    parser.add_argument("--repeats", type=cli.positive_int, required=True, metavar="N",
                        help="CNN trainings of each arm in each replicate")
    parser.add_argument("--replicates", type=cli.positive_int, default=1, metavar="R",
                        help="splits, each with generators trained for it")
    parser.add_argument("--metric", metavar="NAME",
                        help=f"score to compare (default: the plan's, else {METRIC})")
    parser.add_argument("--margin", type=cli.positive_float, metavar="SCORE",
                        help=f"margin in the score (default: the plan's, else {MARGIN})")
    parser.add_argument("--alpha", type=cli.positive_float, metavar="P",
                        help=f"significance level (default: the plan's, else {ALPHA})")
    parser.add_argument("--force", action="store_true",
                        help="go on with a plan that cannot reach an answer")
    cli.add_common(parser, seed=False, device=False, overwrite=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
