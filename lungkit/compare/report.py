"""The comparison for readers: one self-contained HTML page; nothing is tested or decided here."""

from __future__ import annotations

import base64
import csv
import functools
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lungkit.compare import (
    curves,
    explained as explanations,
    figures,
    likeness as alike,
    memory as memories,
    scores,
    tables,
)
from lungkit.compare.answer import OUTSIDE, PRIMARY, SECOND, Comparison, PairAnswer
from lungkit.compare.explained import Explained
from lungkit.compare.memory import Memory
from lungkit.compare.pairs import Pair
from lungkit.compare.power import trainings_needed
from lungkit.compare.results import Results
from lungkit.compare.tables import p_words, points
from lungkit.data.result import SPLITS
from lungkit.data.size_bands import column

TEMPLATE = Path(__file__).with_name("report.html.j2")  # the page's words and its style
FAMILIES = {PRIMARY: "each synthetic arm against real", SECOND: "all other pairs",
            OUTSIDE: "a baseline or a control, in no family"}


# ------------------------------------------------------------------ the page

def contents(found: Results, said: Comparison, tests: Sequence[Pair], sheets_dir: Path | None,
             likeness: Sequence[dict] = (), models_dir: Path | None = None,
             memory: Memory | None = None,
             explained: Explained | None = None) -> dict[str, bytes]:
    """The files of a comparison, all but its manifest and the tables of `csv_tables`.

    likeness: of lungkit.compare.likeness.read. models_dir: the folder of the arms' models.
    memory: of lungkit.compare.memory.read; explained: of lungkit.compare.explained.read.
    """
    pictures = {"accuracy_boxplot.png": figures.boxplot_png(found, said.metric, said.arms)}
    if any(pair.estimates for pair in said.pairs):
        pictures["accuracy_differences.png"] = figures.differences_png(said)
    if said.curve:
        pictures["dose.png"] = figures.dose_png(said)
    if shown := curves.of_arms(models_dir, found.datasets):
        pictures[curves.PICTURE] = curves.png(shown)
    html = page(found, said, tests, pictures=pictures,
                sheets=read_sheets(sheets_dir, found.datasets), likeness=likeness,
                memory=memory, explained=explained)
    measured = {"fidelity.csv": table_csv(list(likeness)).encode()} if likeness else {}
    if memory and memory.by_class:
        measured["memorisation.csv"] = table_csv(memory.by_class).encode()
    return {"accuracies.csv": table_csv([tidy(row) for row in found.rows]).encode(),
            "wilcoxon.csv": table_csv([asdict(pair) for pair in tests]).encode(),
            **measured, **pictures, "report.html": html.encode()}


@functools.cache
def _template(path: Path):
    """A file as a jinja2.Template, compiled once."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True,
                                     keep_trailing_newline=True)
    environment.filters |= {
        "percent": tables.percent, "capital": scores.capital,
        "metric_words": scores.metric_words,
        "base64": lambda content: base64.b64encode(content).decode("ascii")}
    environment.tests |= {"accuracy": scores.is_accuracy, "on_grid": scores.on_grid}
    return environment.from_string(path.read_text(encoding="utf-8"))


def page(found: Results, said: Comparison, tests: Sequence[Pair], *, pictures: dict[str, bytes],
         sheets: dict[str, bytes], likeness: Sequence[dict] = (),
         memory: Memory | None = None, explained: Explained | None = None) -> str:
    """The whole report as one HTML page that needs no other file."""
    from lungkit.compare import dose, instrument  # read all that is compared: --help must not

    score, split = scores.parts(said.metric)
    counts = sorted({arm.n for arm in said.arms})
    return _template(TEMPLATE).render(
        found=found, said=said, tests=tests, tables=tables, pictures=pictures, sheets=sheets,
        likeness=alike.table(list(likeness)), nuclei=alike.nuclei_table(list(likeness)),
        memory=memory or Memory(), memories=memories,
        explained=explained or Explained(), explanations=explanations,
        controls=instrument.table(said.controls, said.alpha),
        morphology=instrument.morphology_table(said.morphology, said.alpha),
        curve=dose.table(said.curve, said.alpha),
        score=score, split=split, families=FAMILIES, plan=plan_in_words(said.plan),
        n=" to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))),
        also=[str(each) for each in said.warnings if not each.limits],
        sizes=test_sizes(found, split), malignancy=malignancy(found),
        needed=trainings_needed(said.alpha), provenance=provenance(found))


def plan_in_words(plan: dict | None) -> dict[str, list[str]] | None:
    """What was planned, and every look beyond it; None without a plan."""
    from lungkit.compare import plan as plans  # reads datasets, which --help must not wait for

    if plan is None:
        return None
    planned = plans.in_words(plan) if "outlook" in plan else [
        ", ".join(f"{name} {plan[name]}" for name in plans.LOOKED)]
    if plan.get("out_of_reach"):
        planned.append(f"planned although it could not reach an answer: {plan['out_of_reach']}")
    looks = [f"{look['made_at']}: {', '.join(look['changed'])}" for look in plan["looks"]]
    return {"made": [f"{plan[name]}" for name in ("made_at", "made_by") if name in plan],
            "planned": planned, "looks": looks, "cost": f"{100 * plans.cost(plan):.0f}"}


def test_sizes(found: Results, split: str | None) -> list[int]:
    """How many test images the results are of; several where arms or replicates differ."""
    return sorted({row[split]["num_images"] for row in found.rows}) if split else []


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


def provenance(found: Results) -> list[str]:
    """What the results were made from and by, a line each."""
    rows = found.rows
    lines = [f"{name}: {value}" for name, value in found.settings.items()]
    lines.append(f"repeats {', '.join(map(str, found.repeats))}; replicates "
                 f"{', '.join(map(str, found.replicates))}")
    lines += [f"{name}, replicate {replicate}: fingerprint {fingerprint}"
              for name, replicate, fingerprint in dict.fromkeys(
                  (row["dataset"], row["replicate"], row["dataset_fingerprint"])
                  for row in rows if "dataset_fingerprint" in row)]
    checked = [row["leaks"] for row in rows if row.get("leaks")]
    if checked:
        passed = sum(bool(each["passed"]) for each in checked)
        lines.append(f"no training image is or copies a test image of real: looked for and passed "
                     f"for {passed} of {len(rows)} results")
    devices = dict.fromkeys(str(row["device"]) for row in rows if row.get("device"))
    if devices:
        lines.append(f"trained on: {', '.join(devices)}")
    versions = dict.fromkeys(f"{name} {version}" for row in rows
                             for name, version in (row.get("versions") or {}).items())
    if versions:
        lines.append(f"versions: {', '.join(versions)}")
    commits = dict.fromkeys(f"{run['commit']}{', changed' if run.get('dirty') else ''}"
                            for row in rows if (run := row.get("run") or {}).get("commit"))
    if commits:
        lines.append(f"code: {', '.join(commits)}")
    return lines


def read_sheets(sheets_dir: Path | None, datasets: list[str]) -> dict[str, bytes]:
    """The contact sheets `<dataset>.png` found in `sheets_dir`; None means none are wanted."""
    if sheets_dir is None:
        return {}
    paths = {path.stem: path for path in sheets_dir.glob("*.png")}
    return {name: paths[name].read_bytes() for name in datasets if name in paths}


# ------------------------------------------------------------------ as text

def table_csv(lines: list[dict]) -> str:
    """Lines as CSV text; None is an empty cell, nested values are left out."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def tidy(row: dict) -> dict:
    """A row as one flat line, the dataset first: its numbers and words, and nothing nested.

    Only what a baseline says of tumour is flattened, its names after `malignancy_`, and what is
    known by size: accuracy_6_to_8_mm_real.
    """
    told = {f"malignancy_{name}": value for name, value in (row.get("malignancy") or {}).items()}
    told |= {f"{column(name, band['band'])}_{split}": value for split in SPLITS
             for band in (row.get(split) or {}).get("by_size", [])
             for name, value in band.items() if name != "band"}
    return {"dataset": row["dataset"], **{
        name: value for name, value in (row | told).items()
        if isinstance(value, (str, int, float)) and name != "schema"}}


def verdict_table(pairs: Sequence[PairAnswer]) -> str:
    """Every pair at its highest level as aligned plain text."""
    lines = [("arm", "against", "level", "difference", "decision", "rank-sum p (Holm)")]
    lines += [(pair.arm, pair.against, pair.level or "-",
               points(pair.estimates[pair.level].difference) if pair.level else "",
               pair.decision or "no verdict", p_words(pair.rank_sum["p_holm"])) for pair in pairs]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(
        cell.rjust(width) if place in (3, 5) else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)
