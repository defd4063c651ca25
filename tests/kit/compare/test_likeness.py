"""How like real images an arm's are, on the page and as a table: as measured, of these images."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import wilcoxon_test
from lungkit.compare import likeness, memory
from lungkit.data.png import encode_png
from lungkit.run.faults import Fault
from result_trees import write_counts

SCORE = {"value": 0.0123, "low": 0.01, "high": 0.02, "floor": 0.003, "floor_low": 0.001,
         "floor_high": 0.005, "ceiling": 0.9}
LABEL = {"arm": {"value": 0.75, "low": 0.6, "high": 0.9, "n": 40},
         "real": {"value": 0.9, "low": None, "high": None, "n": 20}}


def write(folder, *, fingerprint, **changed):
    """datasets/gan/fidelity.json of one class that was measured and one of too few images."""
    path = folder / "gan" / likeness.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("fid", "kid", "precision", "recall", "density", "coverage")
    path.write_text(json.dumps({
        "schema": likeness.SCHEMA, "dataset_fingerprint": fingerprint, "classes": {
            "aca": {"n": 20, "scores": {name: SCORE for name in names}, "label": LABEL},
            "few": {"n": 9, "too_few": True, "label": LABEL}}, **changed}))
    return path


@pytest.fixture
def found():
    return SimpleNamespace(datasets=["real", "gan"], rows=[
        {"dataset": name, "replicate": 0, "dataset_fingerprint": f"of {name}"}
        for name in ("real", "gan")])


def test_every_number_is_a_line_and_the_page_places_it(tmp_path, found):
    write(tmp_path, fingerprint="of gan")
    lines = likeness.read([tmp_path], found)
    assert len(lines) == 6 + 2 and {line["dataset"] for line in lines} == {"gan"}
    assert [line["floor"] for line in lines if line["score"] == "label"] == [0.9, 0.9]
    shown = likeness.table(lines)
    first, second = shown.lines
    assert first == ["gan", "aca", "20", "12.3", "10.0 to 20.0", "3.0", "900.0", "0.0123", "0.003",
                     "0.01", "0.01 to 0.02", "0.00", "75.0", "90.0"]
    assert second[:2] == ["gan", "few"] and second[3:] == ["–"] * 9 + ["75.0", "90.0"]
    assert len(shown.heads) == len(first)


def test_without_files_there_is_no_table(tmp_path, found):
    assert likeness.read([tmp_path], found) == likeness.read([], found) == []
    assert likeness.table([]) is likeness.nuclei_table([]) is None


@pytest.mark.parametrize(("changed", "words"), [
    ({"fingerprint": "older"}, "is of other images than the results of gan: measure again"),
    ({"fingerprint": "of gan", "schema": "x/1"}, "has schema 'x/1', expected")])
def test_what_was_measured_of_other_images_is_refused(tmp_path, found, changed, words):
    write(tmp_path, **changed)
    with pytest.raises(Fault, match=words):
        likeness.read([tmp_path], found)


def test_of_several_replicates_the_mean_is_shown_and_the_least_and_most(tmp_path, found):
    found.rows += [{"dataset": "gan", "replicate": 1, "dataset_fingerprint": "of another gan"}]
    write(tmp_path / "0", fingerprint="of gan")
    path = write(tmp_path / "1", fingerprint="of another gan")
    content = json.loads(path.read_text())
    content["classes"]["aca"]["scores"]["kid"] = SCORE | {"value": 0.0323, "floor": 0.005}
    content["classes"]["aca"]["n"] = 18
    path.write_text(json.dumps(content))
    lines = likeness.read([tmp_path / "0", tmp_path / "1"], found)
    assert [line["replicate"] for line in lines] == [0] * 8 + [1] * 8
    shown = likeness.table(lines)
    assert shown.lines[0][2:7] == ["18", "22.3", "12.3 to 32.3", "4.0", "900.0"]
    assert "means of 2 replicates" in shown.caption and len(shown.lines) == 2


def test_nuclei_stand_beside_those_of_real_where_there_are_any(tmp_path, found):
    sides = {"arm": {"value": 30.25, "low": 28, "high": 33},
             "real": {"value": 40, "low": 38, "high": 42}}
    path = write(tmp_path, fingerprint="of gan")
    content = json.loads(path.read_text())
    assert likeness.nuclei_table(likeness.read([tmp_path], found)) is None
    content["classes"]["aca"]["nuclei"] = dict.fromkeys(likeness.NUCLEI, sides)
    path.write_text(json.dumps(content))
    lines = likeness.read([tmp_path], found)
    assert [line["floor"] for line in lines if line["score"] == "area_um2"] == [40]
    line, = likeness.nuclei_table(lines).lines
    assert line == ["gan", "aca", *["30.2", "28.0 to 33.0", "40.0"] * 3]
    assert len(likeness.nuclei_table(lines).heads) == len(line)


def test_the_stage_shows_it_and_makes_the_comparison_anew_where_it_changes(tmp_path, capsys):
    tree = write_counts(tmp_path / "r", {"real": [50, 52, 54], "gan": [48, 50, 53]})
    of = next(json.loads(path.read_text())["dataset_fingerprint"]
              for path in tree.glob("gan/*/repeat_0000.json"))
    path = write(tmp_path / "datasets", fingerprint=of)
    counts = {"aca": {"images": 20, "copies": 5}}
    (path.parent / memory.MANIFEST).write_text(json.dumps({"fingerprint": of, "copy_audit": {
        "images": 20, **{f"share_{kind}": 0.1 for kind in memory.KINDS}, "by_class": counts,
        "control": counts}}))
    picture = path.parent / memory.PICTURE
    picture.write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    command = [str(tree), "--output", str(tmp_path / "c"), "--fidelity",
               str(tmp_path / "datasets")]
    assert wilcoxon_test.main(command) == 0
    page = (tmp_path / "c/report.html").read_text()
    assert "How like real images" in page and "10.0 to 20.0" in page
    assert "Is it memory?" in page and "gan: the closest pairs" in page
    assert (tmp_path / "c/memorisation.csv").read_text().count("\n") == 2
    assert (tmp_path / "c/fidelity.csv").read_text().count("\n") == 9
    assert wilcoxon_test.main(command) == 0 and "already complete" in capsys.readouterr().out
    path.unlink()
    picture.unlink()
    assert wilcoxon_test.main(command) == 0
    page = (tmp_path / "c/report.html").read_text()
    assert "How like real images" not in page
    assert "Is it memory?" in page and "gan: the closest pairs" not in page
    assert not (tmp_path / "c/fidelity.csv").exists()
    assert wilcoxon_test.main([*command[:-1], str(tmp_path / "absent")]) == 2
    assert "--fidelity" in capsys.readouterr().err
