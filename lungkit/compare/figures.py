"""The comparison as pictures: every repeat of every arm, every difference at every level."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from lungkit.compare import scores
from lungkit.compare.answer import PRIMARY, ArmAnswer, Comparison
from lungkit.compare.results import REAL, Results
from lungkit.compare.tables import largest_class

# Okabe and Ito 2008: told apart with every common colour vision; real is always the first
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8200", "#555555")


def boxplot_png(found: Results, metric: str, arms: Sequence[ArmAnswer]) -> bytes:
    """Box and strip plot of `metric`: every repeat a dot, tied dots side by side."""
    figure, axes = _figure(max(6.0, 1.5 * len(arms) + 1.6), 4.6)
    by_replicate = len(found.replicates) > 1
    marked = None
    for place, arm in enumerate(arms):
        colour = COLOURS[place % len(COLOURS)]
        dots = [100 * row[metric] for row in found.rows if row["dataset"] == arm.dataset]
        units = [100 * value for value in found.values(arm.dataset, metric)]
        axes.boxplot([units], positions=[place], widths=0.56, showfliers=False, patch_artist=True,
                     boxprops={"facecolor": colour, "alpha": 0.18, "edgecolor": colour},
                     medianprops={"color": colour, "linewidth": 2.4},
                     whiskerprops={"color": colour}, capprops={"color": colour})
        axes.scatter([place + offset for offset in _spread(dots)], dots,
                     s=14 if by_replicate else 26, alpha=0.45 if by_replicate else 0.85,
                     color=colour, linewidths=0.5, edgecolors="white", zorder=3)
        if by_replicate:
            axes.scatter([place + offset for offset in _spread(units)], units, s=52, marker="D",
                         color=colour, edgecolors="white", linewidths=0.8, zorder=4)
        if arm.own is not None and arm.dataset != REAL:
            axes.scatter([place], [100 * arm.own], s=60, marker="_", color="#333333",
                         linewidths=1.8, zorder=5,
                         label=None if marked else "mean on its own test split")
            marked = True
    largest = [share for arm in arms if (share := largest_class(arm)) is not None]
    if largest:
        axes.axhline(100 * max(largest), color="#777777", linestyle=(0, (4, 3)), linewidth=1.1,
                     zorder=1, label="always the largest class")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13),
                    ncols=2)
    axes.set_xticks(range(len(arms)), [_short(arm.dataset) for arm in arms], parse_math=False)
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.set_ylabel(f"{scores.capital(scores.metric_words(metric))} (%)")
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    what = "repeat (diamonds: means of a replicate)" if by_replicate else "repeat"
    axes.set_title(f"Every dot is one {what}", fontsize=10, loc="left", color="#444444")
    return _png(figure)


def differences_png(said: Comparison) -> bytes:
    """The difference of every pair at every level it reaches, beside the margin.

    The highest level is drawn strong, its equivalence interval thick; the others thin below it.
    """
    pairs = [pair for pair in said.pairs if pair.estimates]
    figure, axes = _figure(7.6, 0.5 * len(pairs) + 1.7)
    ends = [100 * end for pair in pairs for each in pair.estimates.values()
            for end in (each.low, each.high) if math.isfinite(end)]
    reach = 1.12 * max([100 * said.margin * 1.5, *map(abs, ends)])
    axes.axvspan(-100 * said.margin, 100 * said.margin, color="#009E73", alpha=0.13, linewidth=0,
                 label=f"margin ±{100 * said.margin:g} points")
    axes.axvline(0, color="#555555", linewidth=1)
    for place, pair in enumerate(pairs):
        colour = COLOURS[0] if pair.family == PRIMARY else "#555555"
        best, *others = sorted(pair.estimates.values(), key=lambda each: each.level, reverse=True)
        _interval(axes, place, (best.low, best.high), reach, color=colour, linewidth=1.8)
        _interval(axes, place, (best.low_equivalence, best.high_equivalence), reach, color=colour,
                  linewidth=5)
        axes.plot([100 * best.difference], [place], "o", color=colour, markersize=7.5,
                  markeredgecolor="white")
        for step, each in enumerate(others, 1):
            _interval(axes, place + 0.16 * step + 0.04, (each.low, each.high), reach,
                      color="#AAAAAA", linewidth=1.2)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_yticks(range(len(pairs)), [f"{_short(pair.arm)} − {_short(pair.against)}"
                                        for pair in pairs], parse_math=False)
    words = axes.secondary_yaxis("right")
    words.set_yticks(range(len(pairs)), [f"{pair.level}: {pair.decision}" for pair in pairs])
    words.tick_params(length=0, labelsize=9)
    words.spines["right"].set_visible(False)
    axes.set_xlabel(f"difference of means in {scores.metric_words(said.metric)}, points",
                    loc="right")
    axes.set_title(f"{100 - 100 * said.alpha:g} % intervals, thick: "
                   f"{100 - 200 * said.alpha:g} %; grey: lower levels", fontsize=9, loc="left",
                   color="#444444")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def dose_png(said: Comparison) -> bytes:
    """The score of every mixture by its number of training images; a line a kind of mixture.

    Each kind stands a little to the right of the one before: intervals at one number are all seen.
    """
    figure, axes = _figure(7.6, 4.6)
    kinds: dict[str, list] = {}
    for point in said.curve:
        kinds.setdefault(f"{point.synthetic} {point.kind}".strip(), []).append(point)
    for place, (name, found) in enumerate(kinds.items()):
        colour = COLOURS[place % len(COLOURS)]
        found = sorted(found, key=lambda point: point.num_real + point.num_synthetic)
        images = [1.03**place * (point.num_real + point.num_synthetic) for point in found]
        axes.plot(images, [100 * point.mean for point in found], "o-", color=colour, label=name)
        for at, point in zip(images, found):
            if point.low is not None:
                axes.plot([at, at], [100 * point.low, 100 * point.high], color=colour,
                          linewidth=1.4, alpha=0.6)
    axes.set_xscale("log")
    ticks = sorted({round(point.num_real + point.num_synthetic) for point in said.curve})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training images")
    axes.set_ylabel(f"{scores.capital(scores.metric_words(said.metric))} (%)")
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def _interval(axes, place: float, interval: tuple[float, float], reach: float, **style) -> None:
    """A line from end to end in points; an end without a bound is an arrow at the edge."""
    low, high = (min(reach, max(-reach, 100 * end)) for end in interval)
    axes.plot([low, high], [place, place], solid_capstyle="butt", **style)
    for end, mark in zip(interval, "<>"):
        if math.isinf(end):  # no data of this size could exclude more
            axes.plot([math.copysign(reach, end)], [place], marker=mark, color=style["color"])


def _figure(width_in: float, height_in: float):
    from matplotlib.figure import Figure  # not pyplot: no window, no state, no display needed

    figure = Figure(figsize=(width_in, height_in), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10, color="#999999")
    return figure, axes


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _spread(values: list[float], step: float = 0.055) -> list[float]:
    """Horizontal offsets that put equal values side by side around the middle."""
    groups: dict[float, list[int]] = {}
    for index, value in enumerate(values):
        groups.setdefault(round(value, 6), []).append(index)
    offsets = [0.0] * len(values)
    for members in groups.values():
        width = min(step, 0.56 / len(members))
        for rank, index in enumerate(members):
            offsets[index] = width * (rank - (len(members) - 1) / 2)
    return offsets


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
