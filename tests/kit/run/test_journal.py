"""The journal of results: what a kill, another recipe, another process or a change leaves of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tumor_seg
from arms import fork
from lungkit.histology import tiles
from lungkit.phantom.paint import draw_tile
from lungkit.run.journal import Journal, ResultJournal


@pytest.fixture
def path(tmp_path):
    with ResultJournal(tmp_path / "kept", "recipe") as journal:
        for number in range(5):
            journal.add(f"image {number}", number, {"value": number * 1000})
    return tmp_path / "kept"


def kept(path, recipe="recipe"):
    with ResultJournal(path, recipe, keep=False) as journal:
        return [n for n in range(5) if journal.get(f"image {n}", n) == {"value": n * 1000}]


def test_results_are_there_again(path):
    assert kept(path) == [0, 1, 2, 3, 4]


def test_another_recipe_or_stamp_finds_nothing(path):
    assert kept(path, "other") == []
    with ResultJournal(path, "recipe") as journal:
        assert journal.get("image 1", 2) is None and journal.get("image 9", 9) is None
    with ResultJournal(path, "other") as journal:
        journal.add("image 3", 3, {"value": 3000})
    assert kept(path) == [] and kept(path, "other") == [3]


@pytest.mark.parametrize("cut", [1, 8, 20, 60])
def test_what_was_torn_is_left_out_and_written_over(path, cut):
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    before = kept(path)
    assert before == list(range(len(before))) and len(before) in (3, 4)
    with ResultJournal(path, "recipe") as journal:
        journal.add("image 4", 4, {"value": 4000})
    assert kept(path) == sorted({*before, 4})


def test_a_changed_byte_ends_what_is_believed(path):
    content = path.read_bytes()
    changed = content.replace((4000).to_bytes(2, "little"), (4001).to_bytes(2, "little"))
    assert changed != content and len(changed) == len(content)
    path.write_bytes(changed)
    with ResultJournal(path, "recipe", keep=False) as journal:
        assert journal.get("image 3", 3) == {"value": 3000} and journal.get("image 4", 4) is None


def test_what_others_may_write_is_not_believed(path):
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o660)
    assert kept(path) == []
    with ResultJournal(path, "recipe") as journal:
        journal.add("image 2", 2, {"value": 2000})
    assert kept(path) == [2]


class Call:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_result_cannot_call_anything(path):
    with ResultJournal(path, "recipe") as journal:
        journal.add("image 4", 4, Call(path.parent / "made"))
    assert kept(path) == [0, 1, 2, 3] and not (path.parent / "made").exists()


@dataclasses.dataclass
class Found:
    where: Path
    spots: np.ndarray
    share: np.float64


def test_dataclasses_arrays_and_paths_are_results(path):
    result = {"found": [Found(Path("a/b"), np.arange(6.0).reshape(2, 3), np.float64(0.25))],
              "n": None}
    with ResultJournal(path, "recipe") as journal:
        journal.add("image 9", ("a", 9), result)
    with ResultJournal(path, "recipe", keep=False) as journal:
        again = journal.get("image 9", ("a", 9))
    assert again["found"][0].where == Path("a/b") and again["found"][0].share == 0.25
    assert np.array_equal(again["found"][0].spots, result["found"][0].spots) and again["n"] is None


@pytest.mark.parametrize("foreign", [OrderedDict(a=1), Fraction(1, 2), os.mkdir, OrderedDict],
                         ids=["object", "instance", "function", "class"])
def test_anything_else_is_not_believed(foreign, path):
    with ResultJournal(path, "recipe") as journal:
        journal.add("foreign", 0, foreign)
        journal.add("image 9", 9, {"value": 9000})
    with ResultJournal(path, "recipe", keep=False) as journal:
        assert journal.get("image 4", 4) and journal.get("foreign", 0) is None
        assert journal.get("image 9", 9) == {"value": 9000}


@dataclasses.dataclass
class Inner:
    share: float


@dataclasses.dataclass
class Outer:
    inside: object  # its type says nothing of what is in it


@pytest.mark.parametrize("fields", [
    [("share", float), ("spread", float, 0.0)], [("part", float)], [("share", int)], []],
    ids=["added", "renamed", "typed otherwise", "dropped"])
def test_a_result_with_another_field_anywhere_in_it_is_not_resumed(fields, path, monkeypatch):
    with ResultJournal(path, "recipe") as journal:
        journal.add("plain", 0, Outer(None))
        journal.add("deep", 0, {"all": [Outer((Inner(0.5),))]})
        assert journal.get("deep", 0) == {"all": [Outer((Inner(0.5),))]}
    changed = dataclasses.make_dataclass("Inner", fields)
    changed.__module__ = __name__
    monkeypatch.setattr(sys.modules[__name__], "Inner", changed)
    with ResultJournal(path, "recipe", keep=False) as journal:
        assert journal.get("plain", 0) == Outer(None) and journal.get("deep", 0) is None


def test_a_journal_of_another_user_is_not_read(path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert kept(path) == []


def test_a_result_is_on_file_as_soon_as_it_is_added(path):
    with ResultJournal(path, "recipe") as journal:
        size = path.stat().st_size
        journal.add("image 9", 9, {"value": 9000})
        assert path.stat().st_size > size
        assert kept(path) == [0, 1, 2, 3, 4]


def test_a_later_result_replaces_an_earlier_one(path):
    with ResultJournal(path, "recipe") as journal:
        journal.add("image 1", "changed", {"value": -1})
    with ResultJournal(path, "recipe", keep=False) as journal:
        assert journal.get("image 1", 1) is None
        assert journal.get("image 1", "changed") == {"value": -1}


def test_without_keeping_nothing_is_written(tmp_path):
    with ResultJournal(tmp_path / "kept", "recipe", keep=False) as journal:
        journal.add("image 1", 1, {})
        journal.discard()
    with ResultJournal(tmp_path / "kept", "recipe"):
        pass  # nothing was added: an empty journal would be taken for progress
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_reads_only(path):
    with ResultJournal(path, "recipe") as first, ResultJournal(path, "recipe") as second:
        second.add("image 7", 7, {})
        second.discard()
        first.add("image 8", 8, {})
    with ResultJournal(path, "recipe") as journal:
        assert journal.get("image 7", 7) is None and journal.get("image 8", 8) == {}
        journal.discard()
    assert list(path.parent.iterdir()) == []


def test_a_journal_that_is_not_resumed_says_so(path, capsys):
    assert kept(path, "other") == [] and f"{path}: of another" in capsys.readouterr().err
    assert kept(path) == [0, 1, 2, 3, 4] and capsys.readouterr().err == ""


# ------------------------------------------------------------------ lines of JSON

@pytest.mark.parametrize("torn", [b'{"file_name": "c.png", "n": 3', b"\0" * 40 + b"\n", b"[1]\n",
                                  b'{"file_name": "c.png", "n": 3}'])
def test_lines_are_read_by_name_until_the_first_torn_one(torn, tmp_path):
    """Among them what a run wrote before this module did: plain lines with a file_name."""
    path = tmp_path / "lines"
    path.write_bytes(b'{"file_name": "a.png", "n": 1}\n{"n": 2, "file_name": "b.png"}\n' + torn)
    with Journal(path) as journal:
        assert list(journal) == ["a.png", "b.png"] and "c.png" not in journal
        assert journal.get("c.png") is None
        assert journal.get("b.png") == {"file_name": "b.png", "n": 2}
        journal.add("c.png", {"n": 4})
        journal.add("a.png", {"n": 5})
        assert journal.get("a.png") == {"file_name": "a.png", "n": 5}
    with Journal(path) as journal:
        assert [journal.get(name)["n"] for name in ("a.png", "b.png", "c.png")] == [5, 2, 4]


def test_a_journal_torn_in_its_first_line_begins_anew(tmp_path):
    (tmp_path / "lines").write_text('{"file_na')
    with Journal(tmp_path / "lines") as journal:
        assert not list(journal) and not (tmp_path / "lines").exists()
        journal.add("a.png", {})
        assert journal.get("a.png") == {"file_name": "a.png"}


# ------------------------------------------------------------------ the survey of tumor_seg.py

@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Six images of each of two classes. Read only."""
    root = tmp_path_factory.mktemp("drawn")
    for label in ("lung_aca", "lung_n"):
        (root / label).mkdir()
        for patient in range(6):
            tile = draw_tile(label, patient=patient, index=0, image_size=112).image
            Image.fromarray(tile).save(root / label / f"{patient}.png")
    return root


@pytest.fixture
def images(drawn, tmp_path, found_once):
    return Path(shutil.copytree(drawn, tmp_path / "in"))


def count_examined(monkeypatch):
    seen, examine = [], tiles.examine

    def counted(source, recipe):
        seen.append(source.name)
        return examine(source, recipe)

    monkeypatch.setattr(tumor_seg, "examine", counted)
    return seen


def run(images, output, *more):
    return tumor_seg.main(["--input", str(images), "--output", str(output), "--image-size", "64",
                           *more])


def test_repairing_one_image_needs_no_survey_of_the_rest(images, tmp_path, monkeypatch, capsys):
    good = (images / "lung_aca/3.png").read_bytes()
    (images / "lung_aca/3.png").write_bytes(good[:500])
    assert run(images, tmp_path / "real") == 1
    assert "lung_aca/3.png" in capsys.readouterr().err
    (images / "lung_aca/3.png").write_bytes(good)
    seen = count_examined(monkeypatch)
    assert run(images, tmp_path / "real") == 0
    assert seen == ["lung_aca/3.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "real"]
    assert run(images, tmp_path / "other") == 0
    assert (tmp_path / "other/metadata.csv").read_bytes() == \
        (tmp_path / "real/metadata.csv").read_bytes()


def test_a_dry_run_reads_the_journal_and_writes_nothing(images, tmp_path, monkeypatch):
    assert run(images, tmp_path / "real", "--dry-run") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert run(images, tmp_path / "real", "--groups", str(tmp_path / "none.csv")) != 0
    changed = images / "lung_n/2.png"
    assert run(images, tmp_path / "real", "--fold", "1/50") == 1  # too few groups, after the survey
    os.utime(changed, ns=(1, 1))
    seen = count_examined(monkeypatch)
    assert run(images, tmp_path / "real", "--dry-run") == 0
    assert seen == ["lung_n/2.png"]


def test_a_killed_survey_goes_on(images, tmp_path, monkeypatch, capfd):
    seen = count_examined(monkeypatch)
    counted = tumor_seg.examine

    def die_at_the_sixth(source, recipe):
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return counted(source, recipe)

    def killed() -> int:
        tumor_seg.examine = die_at_the_sixth
        return run(images, tmp_path / "real", "--workers", "1")

    assert os.waitstatus_to_exitcode(os.waitpid(fork(killed), 0)[1]) == -signal.SIGKILL
    assert (tmp_path / ".real.survey").exists() and not (tmp_path / "real").exists()
    assert run(images, tmp_path / "real", "--workers", "1") == 0
    assert "5 of 12 images were examined before" in capfd.readouterr().err and len(seen) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "real"]
    assert run(images, tmp_path / "whole") == 0
    assert (tmp_path / "whole/metadata.csv").read_bytes() == \
        (tmp_path / "real/metadata.csv").read_bytes()
