"""How the losses of generators fell: the tables beside what was trained, read and drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path

from lungkit.run.tables import read_table

FILE, PICTURE = "loss.csv", "loss.png"
FEWEST_POINTS = 10  # ours: fewer are no curve
MOST_COLUMNS = 4
TRAIN, HELD_OUT, BEST = "#8f8f8f", "#0072B2", "#D55E00"  # Okabe and Ito 2008

# of one training: (steps done, loss) of what was learnt from, and of what was held out
Curve = tuple[list[tuple[int, float]], list[tuple[int, float]]]


def paths(models_dir: Path | None, names: Iterable[str]) -> list[Path]:
    """The tables of the models of these arms that are there; None: none are wanted."""
    if models_dir is None:
        return []
    return [path for name in names for path in sorted((models_dir / name).glob(f"*/{FILE}"))]


def read(path: Path) -> Curve:
    """A table written by lungkit.learn.loop."""
    rows = [row for _, row in read_table(path, ("step", "train_loss")).rows]
    return tuple([(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
                 for name in ("train_loss", "val_loss"))


def of_arms(models_dir: Path | None, names: Iterable[str]) -> dict[str, Curve]:
    """{"arm, part": its curve} of the models that were trained long enough to have one."""
    return long_enough({f"{path.parent.parent.name}, {path.parent.name}": read(path)
                        for path in paths(models_dir, names)})


def of_model(model_dir: Path) -> dict[str, Curve]:
    """{part: its curve} of one model."""
    return long_enough({path.parent.name: read(path)
                        for path in sorted(model_dir.glob(f"*/{FILE}"))})


def long_enough(curves: dict[str, Curve]) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if len(curve[0]) >= FEWEST_POINTS}


def png(curves: dict[str, Curve]) -> bytes:
    """A panel a training: its loss, that on what was held out, and where this was least."""
    from matplotlib.figure import Figure

    columns = min(MOST_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.3 * rows + 0.3), dpi=130, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flat
    for (name, (train, held)), axes in zip(curves.items(), every, strict=False):
        axes.plot(*zip(*train, strict=True), color=TRAIN, linewidth=0.9, label="learnt from")
        if held:
            best = min(held, key=lambda point: point[1])
            axes.plot(*zip(*held, strict=True), "o-", color=HELD_OUT, markersize=3, linewidth=1.3,
                      label="held out")
            axes.axvline(best[0], color=BEST, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            axes.plot(*best, "o", color=BEST, markersize=6, label=f"kept: step {best[0]}")
        axes.set_title(name, fontsize=9, loc="left", parse_math=False)
        axes.set_ylim(*reach([loss for _, loss in (*train[len(train) // 20:], *held)]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, color="#999999")
        axes.legend(frameon=False, fontsize=7)
        axes.set_xlabel("steps", fontsize=7)
    for axes in list(every):  # what zip did not take
        axes.remove()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def reach(losses: list[float]) -> tuple[float, float]:
    """The range of the axis: the first steps' losses, which dwarf all others, may leave it."""
    low, high = min(losses), max(losses)
    return low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
