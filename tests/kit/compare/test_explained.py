"""Outliers and maps of where a CNN looks: read from beside a run, shown on the page."""

from __future__ import annotations

import json

import pytest

import wilcoxon_test
from lungkit.compare import explained
from lungkit.compare.results import read_results
from lungkit.run.faults import Fault
from result_trees import write_counts

MEAN = {"value": 0.5, "low": 0.4, "high": 0.6}
OF = {"map": MEAN, "shuffled": {**MEAN, "value": 0.25}, "blob": MEAN, "ceiling": MEAN,
      "by_area": 0.125, "above_shuffled": {"value": 0.25, "low": 0.1, "high": 0.4, "more": "yes"},
      "above_blob": {"value": 0.0, "low": None, "high": None, "more": "cannot be told"}}


@pytest.fixture
def tree(tmp_path):
    return write_counts(tmp_path / "r", {"real": [50, 52, 54], "arm": [48, 50, 53]})


@pytest.fixture
def folders(tree, tmp_path):
    """What the two stages write, of the results' own images; pictures that tell their names."""
    row = read_results(tree).rows[0]
    about = {"outliers.json": {"dataset": row["dataset"], "classes": {
        "a": {"images": 40, "groups": 20, "flagged": 2, "expected": 0.4},
        "b": {"images": 3, "groups": 3, "too_few": True}},
        "dataset_fingerprint": row["dataset_fingerprint"]},
        "explain.json": {"dataset": "real", "model": "small", "repeat": 0, "mask": "nodule",
                         "num_scored": 12, "num_groups": 9, "verdict": ["a verdict of the maps"],
                         "real_fingerprint": row["real_fingerprint"],
                         "scores": {"points": OF, "energy": OF}}}
    for name, content in about.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(json.dumps({"schema": explained.SCHEMAS[name], **content}))
        for picture in explained.PICTURES[name]:
            (folder / picture).write_bytes(f"picture {picture}".encode())
    return tmp_path / "outliers", tmp_path / "explain"


def test_tables_say_flagged_and_expected_and_where_the_maps_point(tree, folders):
    said = explained.read(folders, read_results(tree))
    assert explained.outlier_table(said).lines == [["a", "40", "20", "2", "0.4"],
                                                   ["b", "3", "3", "–", "–"]]
    points, energy = explained.map_table(said).lines
    assert points == ["maximum inside, %", "50.0", "40.0 to 60.0", "25.0",
                      "+25.0 (+10.0 to +40.0)", "50.0", "+0.0", "50.0", "12.5"]
    assert energy[0] == "of the sum inside, %"
    said.explain["scores"] = None
    assert explained.map_table(said) is None
    nothing = explained.read([], read_results(tree))
    assert explained.outlier_table(nothing) is explained.map_table(nothing) is None


def test_a_picture_that_was_not_made_is_left_out(tree, folders):
    (folders[0] / "outliers.png").unlink()
    said = explained.read(folders, read_results(tree))
    assert list(said.pictures["outliers.json"].values()) == [b"picture embedding.png"]


@pytest.mark.parametrize(("name", "key", "words"), [
    ("outliers", "dataset_fingerprint", "of other images than the results"),
    ("explain", "real_fingerprint", "of other images than the results"),
    ("explain", "schema", "has schema 'x'")])
def test_what_is_of_other_images_is_refused(tree, folders, name, key, words):
    path = folders[0].parent / name / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "x"}))
    with pytest.raises(Fault, match=words):
        explained.read(folders, read_results(tree))


def test_a_folder_of_neither_stage_is_refused(tree, tmp_path):
    with pytest.raises(Fault, match="holds neither outliers.json nor explain.json"):
        explained.read([tree], read_results(tree))


def test_the_page_shows_both_and_is_made_anew_where_one_changes(tree, folders, tmp_path, capsys):
    command = [str(tree), "--output", str(tmp_path / "c"), "--explained", *map(str, folders)]
    assert wilcoxon_test.main(command) == 0
    page = (tmp_path / "c/report.html").read_text()
    assert "a verdict of the maps" in page and "Strange training images" in page
    assert page.count("data:image/png;base64,cGljdHVyZS") == 3, "the three pictures"
    assert wilcoxon_test.main(command) == 0 and "already complete" in capsys.readouterr().out
    (folders[1] / "explain.png").write_bytes(b"another picture")
    assert wilcoxon_test.main(command) == 0 and "already complete" not in capsys.readouterr().out
    assert wilcoxon_test.main(command[:3]) == 0
    assert "Strange training images" not in (tmp_path / "c/report.html").read_text()
