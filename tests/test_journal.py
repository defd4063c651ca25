"""The journal of results: what a kill, another recipe, another process or a change leaves of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tumor_seg
from lungkit.journal import Journal
from lungkit.phantom import draw_tile

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "kept", "recipe") as journal:
        for number in range(5):
            journal.add(f"image {number}", number, {"value": number * 1000})
    return tmp_path / "kept"


def kept(path, recipe="recipe"):
    with Journal(path, recipe, keep=False) as journal:
        return [n for n in range(5) if journal.get(f"image {n}", n) == {"value": n * 1000}]


def test_results_are_there_again(path):
    assert kept(path) == [0, 1, 2, 3, 4]


def test_another_recipe_or_stamp_finds_nothing(path):
    assert kept(path, "other") == []
    with Journal(path, "recipe") as journal:
        assert journal.get("image 1", 2) is None and journal.get("image 9", 9) is None
    with Journal(path, "other") as journal:
        journal.add("image 3", 3, {"value": 3000})
    assert kept(path) == [] and kept(path, "other") == [3]


@pytest.mark.parametrize("cut", [1, 8, 20, 60])
def test_what_was_torn_is_left_out_and_written_over(path, cut):
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    before = kept(path)
    assert before == list(range(len(before))) and len(before) in (3, 4)
    with Journal(path, "recipe") as journal:
        journal.add("image 4", 4, {"value": 4000})
    assert kept(path) == sorted({*before, 4})


def test_a_changed_byte_ends_what_is_believed(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    assert kept(path) == [0, 1, 2, 3]


def test_what_others_may_write_is_not_believed(path):
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o660)
    assert kept(path) == []
    with Journal(path, "recipe") as journal:
        journal.add("image 2", 2, {"value": 2000})
    assert kept(path) == [2]


class Call:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_result_cannot_call_anything(path):
    with Journal(path, "recipe") as journal:
        journal.add("image 4", 4, Call(path.parent / "made"))
    assert kept(path) == [0, 1, 2, 3, 4] and not (path.parent / "made").exists()


def test_a_second_process_reads_only(path):
    with Journal(path, "recipe") as first, Journal(path, "recipe") as second:
        second.add("image 7", 7, {})
        second.discard()
        first.add("image 8", 8, {})
    with Journal(path, "recipe") as journal:
        assert journal.get("image 7", 7) is None and journal.get("image 8", 8) == {}
        journal.discard()
    assert list(path.parent.iterdir()) == []


# ------------------------------------------------------------------ the survey of tumor_seg.py

@pytest.fixture
def images(tmp_path):
    for label in ("lung_aca", "lung_n"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for patient in range(6):
            tile = draw_tile(label, patient=patient, index=0, image_size=112).image
            Image.fromarray(tile).save(tmp_path / "in" / label / f"{patient}.png")
    return tmp_path / "in"


def count_examined(monkeypatch):
    seen, examine = [], tumor_seg.examine

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


def test_a_killed_survey_goes_on(images, tmp_path):
    for number in range(20):  # enough to be killed among them
        tile = np.roll(np.array(Image.open(images / "lung_n/0.png")), 7 * number, 1)
        Image.fromarray(tile).save(images / f"lung_n/more{number}.png")
    journal = tmp_path / ".real.survey"
    command = [sys.executable, ROOT / "tumor_seg.py", "--input", images, "--output",
               tmp_path / "real", "--image-size", "64", "--workers", "2"]
    stage = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if journal.exists() and journal.stat().st_size > 50_000 or stage.poll() is not None:
            break
        time.sleep(0.01)
    stage.send_signal(signal.SIGKILL)
    assert stage.wait() == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    found = re.search(r"(\d+) of 32 images were examined before", done.stderr)
    assert found and 0 < int(found[1]) < 32
    assert not journal.exists()
    (tmp_path / "real/metadata.csv").rename(tmp_path / "resumed.csv")
    shutil.rmtree(tmp_path / "real")
    assert run(images, tmp_path / "real") == 0
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "real/metadata.csv").read_bytes()
