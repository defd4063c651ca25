"""The comparison as pictures: every repeat of every dataset, every difference with its interval."""

from __future__ import annotations

import io
import math

from lungkit.compare import scores
from lungkit.compare.results import REAL, Results

# Okabe and Ito 2008: told apart with every common colour vision; real is always the first
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8200", "#555555")


def boxplot_png(found: Results, metric: str, arms: list[dict]) -> bytes:
    """Box and strip plot of `metric`: every repeat a dot, tied dots side by side."""
    figure, axes = _figure(max(6.0, 1.5 * len(arms) + 1.6), 4.6)
    by_replicate = len(found.replicates) > 1
    name, split = scores.parts(metric)
    for place, arm in enumerate(arms):
        colour = COLOURS[place % len(COLOURS)]
        dots = [100 * row[metric] for row in found.rows if row["dataset"] == arm["dataset"]]
        units = [100 * value for value in found.values(arm["dataset"], metric)]
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
        if split == "real" and arm["dataset"] != REAL:
            axes.scatter([place], [100 * arm[f"{name}_own"]], s=60, marker="_", color="#333333",
                         linewidths=1.8, zorder=5,
                         label="mean on its own test split" if place == 1 else None)
    if "majority_share" in arms[0]:
        axes.axhline(100 * max(arm["majority_share"] for arm in arms), color="#777777",
                     linestyle=(0, (4, 3)), linewidth=1.1, zorder=1,
                     label="always the largest class")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13),
                    ncols=2)
    axes.set_xticks(range(len(arms)), [_short(arm["dataset"]) for arm in arms], parse_math=False)
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.set_ylabel(f"{scores.capital(scores.metric_words(metric))} (%)")
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    what = "repeat (diamonds: means of a replicate)" if by_replicate else "repeat"
    axes.set_title(f"Every dot is one {what}", fontsize=10, loc="left", color="#444444")
    return _png(figure)


def differences_png(pairs: list, margin: float) -> bytes:
    """Shift of every pair with its interval, beside the margin."""
    figure, axes = _figure(7.6, 0.36 * len(pairs) + 1.5)
    ends = [100 * end for pair in pairs for end in (pair.shift, pair.shift_low, pair.shift_high)
            if math.isfinite(end)]
    reach = 1.12 * max([100 * margin * 1.5, *map(abs, ends)])
    axes.axvspan(-100 * margin, 100 * margin, color="#009E73", alpha=0.13, linewidth=0,
                 label=f"margin ±{100 * margin:g} points")
    axes.axvline(0, color="#555555", linewidth=1)
    for place, pair in enumerate(pairs):
        low, high = (min(reach, max(-reach, 100 * end))
                     for end in (pair.shift_low, pair.shift_high))
        colour = COLOURS[0] if pair.dataset_a == REAL else "#555555"
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        for end, mark in ((pair.shift_low, "<"), (pair.shift_high, ">")):
            if math.isinf(end):  # no data of this size could exclude more
                axes.plot([math.copysign(reach, end)], [place], marker=mark, color=colour)
        axes.plot([100 * pair.shift], [place], "o", color=colour, markersize=6.5,
                  markeredgecolor="white")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_yticks(range(len(pairs)), [f"{_short(pair.dataset_a)} − {_short(pair.dataset_b)}"
                                        for pair in pairs], parse_math=False)
    axes.set_xlabel(f"difference in {scores.metric_words(pairs[0].metric)}, points "
                    f"(Hodges-Lehmann, {100 * pairs[0].confidence:g} % interval)", loc="right")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


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
