"""How like real images an arm's are, on the page and as a table: as measured, of these images."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import wilcoxon_test
from lungkit.compare import likeness
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
    lines = likeness.read(tmp_path, found)
    assert len(lines) == 6 + 2 and {line["dataset"] for line in lines} == {"gan"}
    assert [line["floor"] for line in lines if line["score"] == "label"] == [0.9, 0.9]
    shown = likeness.table(lines)
    first, second = shown.lines
    assert first == ["gan", "aca", "20", "12.3", "10.0 to 20.0", "3.0", "900.0", "0.0123", "0.003",
                     "0.01", "0.01 to 0.02", "0.00", "75.0", "90.0"]
    assert second[:2] == ["gan", "few"] and second[3:] == ["–"] * 9 + ["75.0", "90.0"]
    assert len(shown.heads) == len(first)


def test_without_files_there_is_no_table(tmp_path, found):
    assert likeness.read(tmp_path, found) == likeness.read(None, found) == []
    assert likeness.table([]) is None


@pytest.mark.parametrize(("changed", "words"), [
    ({"fingerprint": "older"}, "is of other images than the results of gan: measure again"),
    ({"fingerprint": "of gan", "schema": "x/1"}, "has schema 'x/1', expected")])
def test_what_was_measured_of_other_images_is_refused(tmp_path, found, changed, words):
    write(tmp_path, **changed)
    with pytest.raises(Fault, match=words):
        likeness.read(tmp_path, found)


def test_the_stage_shows_it_and_makes_the_comparison_anew_where_it_changes(tmp_path, capsys):
    tree = write_counts(tmp_path / "r", {"real": [50, 52, 54], "gan": [48, 50, 53]})
    of = next(json.loads(path.read_text())["dataset_fingerprint"]
              for path in tree.glob("gan/*/repeat_0000.json"))
    path = write(tmp_path / "datasets", fingerprint=of)
    command = [str(tree), "--output", str(tmp_path / "c"), "--fidelity",
               str(tmp_path / "datasets")]
    assert wilcoxon_test.main(command) == 0
    page = (tmp_path / "c/report.html").read_text()
    assert "How like real images" in page and "10.0 to 20.0" in page
    assert (tmp_path / "c/fidelity.csv").read_text().count("\n") == 9
    assert wilcoxon_test.main(command) == 0 and "already complete" in capsys.readouterr().out
    path.unlink()
    assert wilcoxon_test.main(command) == 0
    assert "How like real images" not in (tmp_path / "c/report.html").read_text()
    assert not (tmp_path / "c/fidelity.csv").exists()
    assert wilcoxon_test.main([*command[:-1], str(tmp_path / "absent")]) == 2
    assert "--fidelity" in capsys.readouterr().err
