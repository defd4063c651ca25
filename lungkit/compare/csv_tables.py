"""The numbers of a comparison as CSV tables: whether any arm is worse than real comes first."""

from __future__ import annotations

from dataclasses import asdict

from lungkit.compare.answer import PRIMARY, Comparison
from lungkit.compare.report import table_csv


def csv_files(found: Comparison) -> dict[str, str]:
    """Name to text; a table without lines is left out.

    noninferiority.csv  each synthetic arm against real at its highest level
    levels.csv          every pair at every level
    arms.csv            every arm: means, spreads, calibration, worst group
    classes.csv         every class of every arm
    sizes.csv           every size band of every arm, where sizes of nodules are known
    confusion.csv       what was said of each class, summed over repeats
    controls.csv        every control: what was expected of it, found, and whether that is it
    morphology.csv      every arm beside colour and contrast alone
    dose.csv            every mixture with real, and real itself
    worth.csv           what one real image is worth in an arm's images
    components.csv      where the variance of a difference is from
    looks.csv           the plan and every look beyond it
    power.csv           what the plan could show at every level
    """
    levels = [{"arm": pair.arm, "against": pair.against, "family": pair.family, "margin":
               found.margin, **asdict(estimate)}
              for pair in found.pairs for estimate in pair.estimates.values()]
    first = [{"arm": pair.arm, "against": pair.against, "level": pair.level,
              "metric": found.metric, "margin": found.margin,
              **{name: getattr(pair.estimates[pair.level], name) for name in (
                  "difference", "low", "high", "p_not_worse", "p_not_worse_holm")},
              "decision": pair.decision, "sentence": pair.sentence}
             for pair in found.pairs if pair.family == PRIMARY and pair.level]
    classes = [{"dataset": arm.dataset, **asdict(each)} for arm in found.arms
               for each in arm.classes]
    sizes = [{"dataset": arm.dataset, **asdict(each)} for arm in found.arms for each in arm.bands]
    arms = [{**{name: value for name, value in asdict(arm).items()
                if not isinstance(value, (list, dict))}, **arm.scores,
             "num_outlying": len(arm.outlying), **{
                 f"worst_{name}": value for name, value in (arm.worst_group or {}).items()}}
            for arm in found.arms]
    confusion = [{"dataset": arm.dataset, "true": true.name, "said": said.name, "count": count}
                 for arm in found.arms for true, line in zip(arm.classes, arm.confusion)
                 for said, count in zip(arm.classes, line)]
    tables = {"noninferiority.csv": first, "levels.csv": levels, "arms.csv": arms,
              "classes.csv": classes, "sizes.csv": sizes, "confusion.csv": confusion,
              "components.csv": [asdict(each) for each in found.components],
              "controls.csv": [asdict(each) for each in found.controls],
              "morphology.csv": [asdict(each) for each in found.morphology],
              "dose.csv": [asdict(each) for each in found.curve],
              "worth.csv": [asdict(each) for each in found.worth],
              **_of_plan(found.plan or {})}
    return {name: table_csv(lines) for name, lines in tables.items() if lines}


def _of_plan(plan: dict) -> dict[str, list[dict]]:
    from lungkit.compare.plan import LOOKED  # reads datasets, which --help must not wait for

    looks = [{"made_at": look.get("made_at"), **{name: look[name] for name in LOOKED},
              "arms": " ".join(look["arms"]), "changed": "; ".join(look.get("changed", []))}
             for look in ([plan, *plan["looks"]] if plan else [])]
    return {"looks.csv": looks, "power.csv": [
        {"level": level, **shown} for level, shown in plan.get("outlook", {}).items()]}
