"""The pictures, by what is drawn on them: every repeat, every interval, under its own name."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lungkit.compare import figures
from lungkit.compare.conclude import conclude
from lungkit.compare.pairs import compare
from lungkit.compare.results import read_results
from result_trees import OTHERS, record, right, split_of, write, write_counts

COUNTS = {"real": [54, 54, 57, 60], "gan": [30, 33, 33, 33],
          "a name of more than 18": [6, 12, 18, 24]}
DARK = "#333333"


@pytest.fixture
def axes_of(monkeypatch):
    """Draw, and return the axes as they were when the picture was saved."""
    from matplotlib.figure import Figure

    saved = []

    def save(figure, file, **_):
        saved.append(figure)
        file.write(b"png")

    monkeypatch.setattr(Figure, "savefig", save)

    def draw(function, *arguments):
        assert function(*arguments) == b"png"
        [axes] = saved.pop().axes
        return axes

    return draw


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return read_results(write_counts(tmp_path_factory.mktemp("results"), COUNTS, own=48))


def said_of(found, metric="accuracy_real", *, alpha=0.05, margin=0.05):
    tests = compare({name: found.values(name, metric) for name in found.datasets}, metric=metric,
                    unit=found.unit, alpha=alpha, margin=margin)
    return conclude(found, tests, metric, None, None, alpha=alpha, margin=margin)


def arms_of(found, metric="accuracy_real"):
    return said_of(found, metric).arms


def scattered(axes):
    """(colour, [N, 2] places and percents) of every group of dots."""
    from matplotlib.colors import to_hex

    return [(to_hex(each.get_facecolor()[0]).upper(), np.asarray(each.get_offsets()))
            for each in axes.collections]


def dots(axes, colour):
    return [places for each, places in scattered(axes) if each == colour.upper()]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# ------------------------------------------------------------------ every repeat

def test_every_repeat_is_a_dot_over_the_name_of_its_dataset(axes_of, found):
    axes = axes_of(figures.boxplot_png, found, "accuracy_real", arms_of(found))
    names = ["real", "a name of more than 18", "gan"]
    assert ticks(axes.xaxis) == ["real", "a name of more th…", "gan"]
    assert list(axes.get_xticks()) == [0, 1, 2]
    for place, name in enumerate(names):
        [found_dots] = dots(axes, figures.COLOURS[place])
        assert found_dots[:, 1] == pytest.approx(np.array(COUNTS[name]) / 0.6)
        assert (abs(found_dots[:, 0] - place) < 0.3).all()
        assert len(np.unique(found_dots.round(6), axis=0)) == 4  # tied dots lie side by side
    low, high = axes.get_ylim()
    assert low < 10 and high > 100 and axes.get_xlim() == (-0.6, 2.6)


def test_a_box_holds_the_quartiles_and_the_median_of_its_dataset(axes_of, found):
    axes = axes_of(figures.boxplot_png, found, "accuracy_real", arms_of(found))
    for place, name in enumerate(found.datasets):
        values = np.array(COUNTS[name]) / 0.6
        box = axes.patches[place].get_path().vertices
        assert box[:, 0].mean() == pytest.approx(place, abs=0.2)
        assert (box[:, 1].min(), box[:, 1].max()) == pytest.approx(
            tuple(np.percentile(values, [25, 75])))
        widest = max((line for line in axes.lines if len(set(line.get_ydata())) == 1
                      and np.mean(line.get_xdata()) == pytest.approx(place)),
                     key=lambda line: np.ptp(line.get_xdata()))
        assert widest.get_ydata()[0] == pytest.approx(np.median(values))


def test_words_around_the_boxes_name_metric_and_unit(axes_of, found):
    axes = axes_of(figures.boxplot_png, found, "accuracy_real", arms_of(found))
    assert axes.get_ylabel() == "Accuracy on real test images (%)"
    assert axes.get_title(loc="left") == "Every dot is one repeat"
    assert labels(axes) == ["mean on its own test split", "always the largest class"]


def test_the_mean_on_its_own_test_split_is_marked_for_all_but_real(axes_of, tmp_path):
    for name, own in (("real", 60), ("gan", 30), ("vae", 45)):
        write_counts(tmp_path, {name: [54, 57]}, own=own)
    found = read_results(tmp_path)
    axes = axes_of(figures.boxplot_png, found, "accuracy_real", arms_of(found))
    assert sorted((round(x), round(y, 6)) for marks in dots(axes, DARK) for x, y in marks) == [
        (1, 50), (2, 75)]


def test_the_line_of_chance_is_the_largest_class_of_the_test_images(axes_of, tmp_path):
    matrix = [[30, 12, 0], [6, 6, 0], [3, 0, 3]]
    for name, scores in (("real", split_of(right(54))), ("gan", split_of(matrix))):
        for repeat in (0, 1):
            write(tmp_path, record(name, repeat, split_of(right(54)), scores))
    found = read_results(tmp_path)
    axes = axes_of(figures.boxplot_png, found, "accuracy_real", arms_of(found))
    [line] = [line for line in axes.lines if line.get_label() == "always the largest class"]
    assert set(line.get_ydata()) == {70}


def test_by_the_arms_own_tests_their_own_values_are_drawn_and_marked_once(axes_of, found):
    axes = axes_of(figures.boxplot_png, found, "accuracy_own", arms_of(found, "accuracy_own"))
    assert axes.get_ylabel() == "Accuracy on its own test images (%)"
    assert all((places[:, 1] == 80).all() for _, places in scattered(axes))
    assert labels(axes) == ["always the largest class"] and dots(axes, DARK) == []


def test_several_replicates_are_diamonds_over_the_dots_of_their_repeats(axes_of, tmp_path):
    for replicate, counts in enumerate(([54, 60], [30, 36])):
        write_counts(tmp_path, {"real": counts, "gan": counts}, replicate=replicate,
                     trained_on=OTHERS, real_fingerprint=f"real{replicate}",
                     dataset_fingerprint=f"{replicate}")
    found = read_results(tmp_path)
    axes = axes_of(figures.boxplot_png, found, "accuracy_real", arms_of(found))
    for place in (0, 1):
        repeats, means = dots(axes, figures.COLOURS[place])
        assert repeats[:, 1] == pytest.approx([90, 100, 50, 60])
        assert means[:, 1] == pytest.approx([95, 55]) and means[:, 0] == pytest.approx(place)
        box = axes.patches[place].get_path().vertices[:, 1]
        assert (box.min(), box.max()) == pytest.approx((65, 85))  # of the two means
    assert axes.get_title(loc="left") == "Every dot is one repeat (diamonds: means of a replicate)"


def test_a_csv_is_drawn_without_what_it_does_not_say(axes_of, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("dataset,repeat,accuracy\na,0,0.5\na,1,0.6\nb,0,0.7\nb,1,0.8\n")
    found = read_results(path)
    axes = axes_of(figures.boxplot_png, found, "accuracy", arms_of(found, "accuracy"))
    assert axes.get_ylabel() == "Accuracy (%)" and labels(axes) == []
    assert [places[:, 1].round(6).tolist() for _, places in scattered(axes)] == [[50, 60], [70, 80]]


def test_more_datasets_than_colours_are_drawn(axes_of, tmp_path):
    found = read_results(write_counts(tmp_path, {f"d{k}": [30, 33] for k in range(9)}))
    axes = axes_of(figures.boxplot_png, found, "accuracy_real", arms_of(found))
    assert ticks(axes.xaxis) == found.datasets
    assert len(set(figures.COLOURS)) == 8 and len(dots(axes, figures.COLOURS[0])) == 2


def test_equal_values_lie_side_by_side_around_the_middle():
    assert figures._spread([0.5, 0.7, 0.5, 0.5 + 1e-9, 0.7]) == pytest.approx(
        [-0.055, -0.0275, 0, 0.055, 0.0275])
    assert max(figures._spread([1.0] * 200)) < 0.28  # within the box


# ------------------------------------------------------------------ every difference

@pytest.fixture(scope="module")
def said(found):
    """Three arms at level A, and the first of them at level C too, wider."""
    made = said_of(found, alpha=0.1)
    first = made.pairs[0]
    first.estimates["C"] = replace(first.estimates["A"], level="C", difference=-0.5, low=-0.9,
                                   high=-0.1, low_equivalence=-0.8, high_equivalence=-0.2)
    first.level, first.decision = "C", "worse"
    return made


def drawn_pairs(axes):
    """Per row from the top: the ends of every interval by width, the dot, colours and arrows."""
    rows = {}
    for line in axes.lines:
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        if len(set(y)) != 1 or line.get_transform() != axes.transData:
            continue
        row = rows.setdefault(round(y[0]), {"arrows": [], "ends": {}, "colours": set()})
        row["colours"].add(line.get_color().upper())
        if len(x) == 2:
            row["ends"][line.get_linewidth()] = tuple(x)
        elif line.get_marker() == "o":
            row["dot"] = x[0]
        else:
            row["arrows"].append((line.get_marker(), x[0]))
    return [rows[place] for place in sorted(rows)]


def test_every_pair_is_its_difference_at_the_answers_level_and_the_lower_levels_grey(axes_of, said):
    axes = axes_of(figures.differences_png, said)
    rows = drawn_pairs(axes)
    assert ticks(axes.yaxis) == ["a name of more th… − real", "gan − real",
                                 "a name of more th… − gan"]
    assert list(axes.get_yticks()) == [0, 1, 2] and axes.yaxis_inverted()
    for row, pair in zip(rows, said.pairs, strict=True):
        best = pair.estimates[pair.level]
        assert row["dot"] == pytest.approx(100 * best.difference)
        assert row["ends"][1.8] == pytest.approx((100 * best.low, 100 * best.high))
        assert row["ends"][5] == pytest.approx(
            (100 * best.low_equivalence, 100 * best.high_equivalence))
        assert row["arrows"] == []
        assert (figures.COLOURS[0] in row["colours"]) == (pair.family == "primary")
    lower = said.pairs[0].estimates["A"]
    assert rows[0]["dot"] == -50 and rows[0]["ends"][1.2] == pytest.approx(
        (100 * lower.low, 100 * lower.high))
    assert 1.2 not in rows[1]["ends"] and "#AAAAAA" in rows[0]["colours"]
    low, high = axes.get_xlim()
    assert low == -high and high > max(abs(end) for row in rows for ends in row["ends"].values()
                                       for end in ends)


def test_every_pairs_level_and_word_stand_beside_it(axes_of, said):
    axes = axes_of(figures.differences_png, said)
    [words] = axes.child_axes
    assert ticks(words.yaxis) == [f"{pair.level}: {pair.decision}" for pair in said.pairs]
    assert ticks(words.yaxis)[0] == "C: worse" and list(words.get_yticks()) == [0, 1, 2]


def test_a_pair_without_an_interval_is_not_drawn(axes_of, said):
    silent = replace(said.pairs[1], estimates={}, level=None)
    axes = axes_of(figures.differences_png, replace(said, pairs=[silent, said.pairs[0]]))
    assert ticks(axes.yaxis) == ["a name of more th… − real"]


def test_the_band_is_the_margin_around_no_difference(axes_of, said):
    axes = axes_of(figures.differences_png, said)
    [band] = axes.patches
    extent = band.get_extents().transformed(axes.transData.inverted())
    assert (extent.x0, extent.x1) == pytest.approx((-5, 5))
    assert labels(axes) == ["margin ±5 points"]
    assert any(set(line.get_xdata()) == {0} and line.get_transform() != axes.transData
               for line in axes.lines)


def test_the_axis_of_differences_names_metric_and_confidence(axes_of, said):
    axes = axes_of(figures.differences_png, said)
    assert axes.get_xlabel() == "difference of means in accuracy on real test images, points"
    assert axes.get_title(loc="left") == "90 % intervals, thick: 80 %; grey: lower levels"


def test_an_end_without_a_bound_is_an_arrow_at_the_edge(axes_of, said):
    whole = said.pairs[1]
    pairs = [replace(whole, estimates={"A": replace(
        whole.estimates["A"], difference=0.01, low=low, high=high, low_equivalence=-0.01,
        high_equivalence=0.02)}) for low, high in (
            (-0.02, math.inf), (-math.inf, math.inf), (-0.02, 0.03))]
    axes = axes_of(figures.differences_png, replace(said, pairs=pairs, margin=0.02))
    edge = axes.get_xlim()[1]
    rows = drawn_pairs(axes)
    assert rows[0]["ends"][1.8] == pytest.approx((-2, edge)) and rows[0]["arrows"] == [(">", edge)]
    assert rows[1]["ends"][1.8] == pytest.approx((-edge, edge))
    assert rows[1]["arrows"] == [("<", -edge), (">", edge)]
    assert rows[2]["ends"][1.8] == pytest.approx((-2, 3)) and rows[2]["arrows"] == []


def test_the_margin_is_in_view_where_the_differences_are_smaller(axes_of, said):
    pair = said.pairs[1]
    small = replace(pair, estimates={"A": replace(
        pair.estimates["A"], difference=0.0, low=-0.001, high=0.001)})
    axes = axes_of(figures.differences_png, replace(said, pairs=[small], margin=0.1))
    assert axes.get_xlim()[1] > 10


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    from matplotlib.text import Text

    names = ["pa$$word", "$x", "$_{$", "a^{b$c$", "Dr\u00fcse \\alpha"]
    drawn, draw = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, renderer: (
        drawn.append((text.get_text(), text.get_parse_math())), draw(text, renderer)))
    counts = {"real": [54, 57], **dict.fromkeys(names, [30, 33])}
    found = read_results(write_counts(tmp_path, counts, own=48))
    pictures = [figures.boxplot_png(found, "accuracy_real", arms_of(found)),
                figures.differences_png(said_of(found))]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert {(said, False) for name in names for said in (name, f"{name} \u2212 real")} <= set(drawn)
