"""Which files below a folder of scans are looked at."""

from __future__ import annotations

from lungkit.ct.folders import walk


def test_each_folder_is_entered_once_and_what_a_system_left_is_not(tmp_path):
    for name in ("a/1.dcm", "a/._1.dcm", "a/Thumbs.db", "a/.hidden", "@eaDir/1.dcm", ".git/1.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert [(folder, names) for folder, names in walk(tmp_path) if names] == [
        (tmp_path / "a", ["._1.dcm", "1.dcm"])]
