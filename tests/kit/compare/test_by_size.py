"""What every arm scores in the bands of nodule size: numbers, intervals, table, columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungkit.compare import csv_tables, per_class, report, tables
from lungkit.compare.evidence import read_evidence
from lungkit.data.metrics import mean_auroc
from lungkit.data.size_bands import BANDS, band_of
from simulated_results import Truth, conclude_of, simulate

TRUTHS = {"real": Truth(0.9), "gan": Truth(0.7)}
MIXED = (4.0, 7.0, 7.5, np.nan)  # none from 8 mm on


def sized(sizes, *, replicates=1, **changed):
    """A simulated run of two classes whose real test images show nodules of these sizes, in turn.

    In the band "below 6 mm" all are of the first class, where there is such a band.
    """
    made = simulate(TRUTHS, seed=2, classes=2, groups=12, repeats=4, replicates=replicates,
                    **changed)
    for arrays in made.arrays.values():
        labels = arrays["real_labels"]
        mm = np.resize(np.array(sizes, np.float32), len(labels))
        arrays["real_diameter_mm"] = np.where((mm < 6) & (labels == 1), np.float32(7), mm)
    for row in made.rows:
        arrays = made.arrays[row["dataset"], row["replicate"], row["repeat"]]
        area = mean_auroc(arrays["real_probabilities"], arrays["real_labels"])
        row["scores"] = {split: {**row["scores"][split], "auroc": area} for split in row["scores"]}
    return made


def answer(made, arm, metric="accuracy_real"):
    found = made.found()
    evidence = read_evidence(Path("results"), found, metric, None, made.read)
    return per_class.arm_answer(found, arm, metric, found.values(arm, metric), evidence,
                                alpha=0.05)


@pytest.mark.parametrize("replicates", [1, 2])
@pytest.mark.parametrize("arm", TRUTHS)
def test_every_band_scores_what_its_images_do(arm, replicates):
    made = sized(MIXED, replicates=replicates)
    found = answer(made, arm).bands
    assert [each.name for each in found] == list(BANDS)
    trainings = [arrays for (name, *_), arrays in made.arrays.items() if name == arm]
    for place, each in enumerate(found[:2]):
        accuracies, areas, groups = [], [], set()
        for arrays in trainings:
            inside = band_of(arrays["real_diameter_mm"]) == place
            told, labels = arrays["real_probabilities"][inside], arrays["real_labels"][inside]
            accuracies.append((told.argmax(1) == labels).mean())
            areas.append(mean_auroc(told, labels))
            groups |= set(arrays["real_groups"][inside])
        assert each.num_images == replicates * inside.sum() and each.num_groups == len(groups)
        assert each.accuracy == pytest.approx(np.mean(accuracies))
        assert each.accuracy_low < each.accuracy < each.accuracy_high
        assert each.largest_class == max(np.bincount(labels)) / len(labels)
    assert found[0].auroc is None and found[0].largest_class == 1  # of one class
    assert found[1].auroc == pytest.approx(np.mean(areas))
    assert found[1].auroc_low < found[1].auroc < found[1].auroc_high
    for each in found[2:]:  # of no image
        assert (each.num_images, each.num_groups) == (0, 0)
        assert {each.accuracy, each.accuracy_low, each.auroc, each.largest_class} == {None}


@pytest.mark.parametrize("score", ["accuracy", "auroc"])
def test_a_band_of_all_images_has_the_interval_of_the_score_itself(score):
    whole = answer(sized((10.0,)), "gan", f"{score}_real")
    band = whole.bands[2]
    assert getattr(band, score) == pytest.approx(whole.mean)
    assert (getattr(band, f"{score}_low"), getattr(band, f"{score}_high")) == pytest.approx(
        (whole.low, whole.high), abs=2e-3)


def test_the_interval_of_a_band_is_over_groups_and_not_over_images():
    made, apart = sized((10.0,)), sized((10.0,))
    for arrays in apart.arrays.values():
        arrays["real_groups"] = np.array([f"g{i}" for i in range(len(arrays["real_labels"]))])
    together, alone = (answer(each, "gan").bands[2] for each in (made, apart))
    assert together.accuracy == alone.accuracy
    assert (together.num_groups, alone.num_groups) == (24, 72)
    assert together.auroc_high - together.auroc_low != pytest.approx(
        alone.auroc_high - alone.auroc_low, rel=1e-3)


def test_a_band_of_one_group_has_no_interval():
    made = sized((10.0,))
    for arrays in made.arrays.values():  # of the other groups nothing is from 15 mm
        first = arrays["real_groups"] == arrays["real_groups"][0]
        arrays["real_diameter_mm"] = np.where(first, 20, 10).astype(np.float32)
    band = answer(made, "gan").bands[3]
    assert (band.num_images, band.num_groups) == (3, 1) and band.accuracy is not None
    assert (band.accuracy_low, band.accuracy_high) == (None, None)


def test_where_sizes_are_not_known_there_are_no_bands():
    said = conclude_of(simulate(TRUTHS, seed=2, repeats=3))
    assert [arm.bands for arm in said.arms] == [[], []]
    assert tables.sizes(said) is None and "sizes.csv" not in csv_tables.csv_files(said)


def test_the_table_and_the_csv_hold_every_band_of_every_arm():
    said = conclude_of(sized(MIXED))
    table = tables.sizes(said)
    assert [line[:2] for line in table.lines] == [[arm, band] for arm in TRUTHS for band in BANDS]
    first = said.arms[1].bands[1]
    line = dict(zip(table.heads, table.lines[5]))
    assert (line["Images"], line["Groups"], line["Accuracy"], line["AUROC"]) == (
        str(first.num_images), str(first.num_groups), f"{100 * first.accuracy:.1f}",
        f"{100 * first.auroc:.1f}")
    assert table.lines[5][6] == f"{100 * first.accuracy_low:.1f} to {100 * first.accuracy_high:.1f}"
    assert table.lines[5][8] == f"{100 * first.auroc_low:.1f} to {100 * first.auroc_high:.1f}"
    assert table.lines[7][4:] == ["–"] * 5  # of no image
    lines = csv_tables.csv_files(said)["sizes.csv"].splitlines()
    assert len(lines) == 9 and lines[0].startswith("dataset,name,num_images,num_groups,")


def test_a_line_of_accuracies_csv_has_the_sizes_as_columns():
    bands = [{"band": "below 6 mm", "num_images": 3, "accuracy": 0.5, "auroc": None},
             {"band": "6 to 8 mm", "num_images": 4, "accuracy": 0.75, "auroc": 0.25}]
    line = report.tidy({"dataset": "gan", "real": {"by_size": bands}, "own": {}})
    assert line == {"dataset": "gan", "num_images_below_6_mm_real": 3,
                    "accuracy_below_6_mm_real": 0.5, "num_images_6_to_8_mm_real": 4,
                    "accuracy_6_to_8_mm_real": 0.75, "auroc_6_to_8_mm_real": 0.25}
