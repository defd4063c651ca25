"""Copies of training images and the membership test, as the arms left them, on the page."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from lungkit.compare import likeness, memory

AUDIT = {"images": 30, "share_near_copies": 0.2, "share_same": 0.1, "share_registered": 0.05,
         "share_alike": 0.02, "share_blend": 0.03,
         "by_class": {"aca": {"images": 20, "copies": 5}, "scc": {"images": 10, "copies": 1}}}
CONTROL = {"aca": {"images": 8, "copies": 0}, "scc": {"images": 4, "copies": 1}}


def write(folder, fingerprint, audit=AUDIT, **measured):
    folder.mkdir(parents=True)
    (folder / memory.MANIFEST).write_text(json.dumps(
        {"fingerprint": fingerprint, "copy_audit": audit}))
    if measured:
        (folder / likeness.FILE).write_text(json.dumps(measured))


@pytest.fixture
def found():
    return SimpleNamespace(datasets=["real", "gan", "old"], rows=[
        {"dataset": name, "replicate": replicate, "dataset_fingerprint": f"{name} {replicate}"}
        for name in ("real", "gan", "old") for replicate in (0, 1)])


def test_copies_stand_beside_the_control_by_class_over_all_replicates(tmp_path, found):
    for replicate in (0, 1):
        write(tmp_path / f"{replicate}/gan", f"gan {replicate}", copy_control=CONTROL)
    read = memory.read([tmp_path / "0", tmp_path / "1"], found)
    shown = memory.class_table(read)
    assert shown.lines == [
        ["gan", "aca", "40", "25.0", "14.2 to 40.2", "16", "0.0", "0.0 to 19.4"],
        ["gan", "scc", "20", "10.0", "2.8 to 30.1", "8", "25.0", "7.1 to 59.1"]]
    assert len(shown.heads) == len(shown.lines[0])
    assert [line["replicate"] for line in read.by_class] == [0, 0, 1, 1]


def test_where_the_held_out_images_were_not_asked_no_rate_is_said_of_them(tmp_path, found):
    write(tmp_path / "0/gan", "gan 0")
    line, _ = memory.class_table(memory.read([tmp_path / "0"], found)).lines
    assert line == ["gan", "aca", "20", "25.0", "11.2 to 46.9", "0", "\u2013", "\u2013"]


def test_how_they_are_copies_and_the_membership_is_a_line_a_replicate(tmp_path, found):
    write(tmp_path / "0/gan", "gan 0", {**AUDIT, "dropped": 7},
          membership={"auroc": 0.734, "low": 0.6, "high": 0.85})
    write(tmp_path / "1/gan", "gan 1")
    one = memory.arm_table(memory.read([tmp_path / "0"], found))
    assert one.lines == [["gan", "10.0", "5.0", "2.0", "3.0", "7", "0.73", "0.60 to 0.85"]]
    both = memory.arm_table(memory.read([tmp_path / "0", tmp_path / "1"], found))
    assert [line[0] for line in both.lines] == ["gan, replicate 0", "gan, replicate 1"]
    assert both.lines[1][5:] == ["\u2013"] * 3


def test_the_pairs_shown_are_those_of_the_first_replicate(tmp_path, found):
    for replicate in (0, 1):
        write(tmp_path / f"{replicate}/gan", f"gan {replicate}")
        (tmp_path / f"{replicate}/gan" / memory.PICTURE).write_bytes(b"pairs %d" % replicate)
    read = memory.read([tmp_path / "0", tmp_path / "1"], found)
    assert read.pictures == {"gan": b"pairs 0"}


@pytest.mark.parametrize(("fingerprint", "audit"), [
    ("another", AUDIT), ("gan 0", {}), ("gan 0", {"images": 9, "share_near_copies": 0.1})])
def test_what_is_of_other_images_or_names_none_is_left_out(fingerprint, audit, tmp_path, found):
    write(tmp_path / "0/gan", fingerprint, audit)
    read = memory.read([tmp_path / "0"], found)
    assert read == memory.Memory() and memory.class_table(read) is memory.arm_table(read) is None
