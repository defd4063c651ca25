"""The dose curve: its points, what an image is worth, and when nothing can be said of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import wilcoxon_test as stage
from lungkit.compare import conclude, dose, figures
from lungkit.compare.pairs import compare
from lungkit.compare.results import read_results
from lungkit.compare.set_aside import set_aside
from simulated_results import Simulated, Truth, simulate_mixtures

REDUCED = {"mix-real-0.1": (Truth(0.6), 0.1, "", 0.0), "mix-real-0.25": (Truth(0.7), 0.25, "", 0.0),
           "mix-real-0.5": (Truth(0.8), 0.5, "", 0.0)}
ALONE = {"mix-prompt-2": (Truth(0.75), 0.0, "prompt", 2.0),
         "mix-diffusion-1": (Truth(0.35), 0.0, "diffusion", 1.0),
         "mix-context-1": (Truth(0.97), 0.0, "context", 1.0)}
BESIDE = {"mix-real-1-prompt-1": (Truth(0.9), 1.0, "prompt", 1.0)}
BIG = {"seed": 1, "groups": 30, "repeats": 5}


def curve(mixtures: dict, *, real: float = 0.87, **how):
    made = simulate_mixtures({"real": Truth(real), "prompt": Truth(0.8)}, mixtures, **how)
    found = made.found()
    set_aside(found)
    return dose.curve(Path("results"), found, "accuracy_real", None, alpha=0.05, margin=0.02,
                      read=made.read)


@pytest.fixture(scope="module")
def rich():
    return curve(REDUCED | ALONE | BESIDE, **BIG)


def test_the_points_are_real_real_reduced_and_the_arms_alone_and_beside_real(rich):
    points, _ = rich
    assert [(each.dataset, each.kind, each.num_real, each.num_synthetic) for each in points] == [
        ("mix-real-0.1", "real alone", 30, 0), ("mix-real-0.25", "real alone", 75, 0),
        ("mix-real-0.5", "real alone", 150, 0), ("real", "real alone", 300, 0),
        ("mix-context-1", "alone", 0, 300), ("mix-diffusion-1", "alone", 0, 300),
        ("mix-prompt-2", "alone", 0, 600), ("mix-real-1-prompt-1", "beside real", 300, 300)]
    assert all(each.low < each.mean < each.high and each.n == 5 for each in points)
    assert all(each.level == "B" and each.difference_low < each.difference < each.difference_high
               for each in points if each.dataset != "real")


def test_of_equal_numbers_of_images_every_interval_is_seen(rich, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_png", lambda figure: drawn.append(figure.axes[0]) or b"")
    figures.dose_png(SimpleNamespace(curve=rich[0], metric="accuracy_real"))
    places = [line.get_xdata()[0] for line in drawn[0].lines if line.get_marker() == "None"]
    assert len(places) == len(set(places)) == len(rich[0])


def test_an_image_is_worth_what_the_curve_of_real_says_or_a_bound(rich):
    told = {each.synthetic: each for each in rich[1]}
    # by the truths 0.75 is half way, in the logarithm, from 75 to 150 images: 106 of them
    assert told["prompt"].low < 600 / 106 < told["prompt"].high < 12
    assert told["prompt"].told.startswith(f"one real image is worth {told['prompt'].rate:.1f} of")
    assert told["diffusion"].told == "one real image is worth more than 10.0 of them"
    assert math.isinf(told["diffusion"].rate)
    assert told["context"].told == "one real image is worth 1.0 of them or fewer"
    assert dose.lines(rich[1], 0.05)[0] == "Worth, 95 % intervals:"


@pytest.mark.parametrize(("mixtures", "how", "words"), [
    (ALONE, {}, "real was not reduced"),
    (REDUCED | ALONE, {"repeats": 1}, "two trainings of each set"),
    ({**ALONE, "mix-real-0.5": (Truth(0.87), 0.5, "", 0.0)}, {},
     "real reduced to 150 images is not shown to be lower than all 300"),
])
def test_where_the_data_cannot_tell_it_is_said_why(mixtures, how, words):
    _, told = curve(mixtures, **{"seed": 2, "repeats": 3, **how})
    assert len(told) == 3
    assert all(each.told.startswith("the data cannot tell: ") and words in each.told
               and each.rate is None for each in told)


@pytest.mark.parametrize(("low", "rate", "high", "words"), [
    (2.0, 3.0, 4.0, "one real image is worth 3.0 of them (2.0 to 4.0)"),
    (2.0, 3.0, math.inf,
     "the data cannot tell more than that one real image is worth 2.0 at least"),
    (1.0, 3.0, 4.0, "the data cannot tell more than that one real image is worth 4.0 at most"),
    (1.0, 3.0, math.inf, "the data cannot tell what one real image is worth"),
    (1.0, 1.0, 1.0, "one real image is worth 1.0 of them or fewer"),
    (math.inf, math.inf, math.inf, "one real image is worth more than 10.0 of them")])
def test_an_end_beyond_the_curve_is_a_bound_and_no_number(low, rate, high, words):
    said = dose.Worth("prompt", 1.0, 300.0, rate, low, high, "")
    assert dose.in_words(said, np.array([30.0, 300.0])) == words


@pytest.mark.parametrize(("value", "reached"), [
    (0.5, 0.0), (0.6, 30.0), (0.65, math.sqrt(30 * 120)), (0.7, 120.0), (0.75, 120.0 * 2.5**0.5),
    (0.8, 300.0), (0.9, 300.0)])
def test_the_curve_is_read_in_the_logarithm_of_the_number(value, reached):
    sizes, means = np.array([30.0, 120.0, 300.0]), np.array([0.6, 0.7, 0.8])
    assert dose.real_images(sizes, means, value) == pytest.approx(reached)


def test_a_curve_that_falls_is_made_rising():
    sizes, means = np.array([30.0, 120.0, 300.0]), np.array([0.7, 0.6, 0.8])
    assert dose.real_images(sizes, means, 0.65) == 0.0
    assert dose.real_images(sizes, means, 0.7) == pytest.approx(120.0)


# ------------------------------------------------------------------ the arms do not notice

def test_mixtures_change_nothing_of_the_arms_and_are_on_the_page(tmp_path, monkeypatch):
    made = simulate_mixtures({"real": Truth(0.87), "prompt": Truth(0.8)}, REDUCED | ALONE,
                             seed=4, repeats=3)
    made.write(tmp_path / "with")
    Simulated([row for row in made.rows if "mix" not in row], made.arrays).write(
        tmp_path / "without")
    said = {}
    for name in ("with", "without"):
        found = read_results(tmp_path / name)
        tests = compare({arm: found.values(arm, "accuracy_real") for arm in found.datasets},
                        metric="accuracy_real", unit=found.unit, alpha=0.05, margin=0.02)
        said[name] = asdict(stage.conclude(
            tmp_path / name, found, tests, "accuracy_real", benign=None, alpha=0.05, margin=0.02,
            controls=[], plan=None)), [asdict(test) for test in tests]
    (more, tests), (plain, tests_plain) = said["with"], said["without"]
    assert tests == tests_plain and len(more.pop("curve")) == 7 and plain.pop("curve") == []
    assert len(more.pop("worth")) == 3 and plain.pop("worth") == []
    lines, own = more.pop("answer"), plain.pop("answer")
    assert lines[:len(own)] == own and lines[len(own)].startswith("Worth") and more == plain

    monkeypatch.setattr(conclude, "crossed_draws",
                        lambda trainings, strata: {name: np.zeros(1) for name in trainings})
    assert stage.main([str(tmp_path / "with"), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "<h2>Dose</h2>" in page and "600 images of prompt: " in page
    assert (tmp_path / "out/dose.png").stat().st_size > 1000
    assert len((tmp_path / "out/dose.csv").read_text().splitlines()) == 8
    assert "one real image" in (tmp_path / "out/worth.csv").read_text() \
        or "cannot tell" in (tmp_path / "out/worth.csv").read_text()
    assert json.loads((tmp_path / "out/comparison.json").read_text())["curve"]


def test_the_interval_is_from_the_percentiles_of_the_draws(rich):
    rng = np.random.default_rng(0)
    real = [dose.Point(f"r{n}", dose.REDUCED, "", 1.0, 0.0, n, 0.0, 5, mean, None, None,
                       -0.1, -0.2, -0.05, "B", 0.001) for n, mean in ((100, 0.6), (200, 0.8))]
    alone = dose.Point("a", dose.ALONE, "prompt", 0.0, 1.0, 0.0, 300.0, 5, 0.7, None, None,
                       None, None, None, None, None)
    draws = {"r100": np.full(999, 0.6), "r200": np.full(999, 0.8),
             "a": rng.permutation(np.linspace(0.62, 0.78, 999))}
    [told] = dose.worth([*real, alone], draws, alpha=0.05)
    rates = np.sort([300 / 100 / 2**((value - 0.6) / 0.2) for value in draws["a"]])
    assert told.low == pytest.approx(rates[25], rel=0.01)
    assert told.high == pytest.approx(rates[973], rel=0.01)


def test_of_images_without_groups_no_worth_is_told():
    made = simulate_mixtures({"real": Truth(0.87), "prompt": Truth(0.8)}, REDUCED | ALONE, **BIG)
    for arrays in made.arrays.values():
        arrays["real_groups"] = arrays["real_file_names"]
    found = made.found()
    set_aside(found)
    _, told = dose.curve(Path("results"), found, "accuracy_real", None, alpha=0.05, margin=0.02,
                         read=made.read)
    assert all(each.told.startswith("the data cannot tell") for each in told)
