"""Groups as users give them: what stands for a value that is not known is no group."""

from __future__ import annotations

from pathlib import Path

import pytest

from lungkit.formats.groups import group_ids
from lungkit.formats.sources import Source
from lungkit.run.faults import Fault

NAMES = [f"{label}/{i}.png" for label in "ab" for i in range(3)]
SOURCES = [Source(Path(name), name, name[0]) for name in NAMES]
MISSING = ["", "nan", "NaN", "NA", "n/a", "#N/A", "<NA>", "-", "--", "\u2014", "?", "None", "NULL",
           "unknown", " Unknown ", "[Not Available]", "missing"]


def table(tmp_path: Path, groups: list[str]) -> str:
    path = tmp_path / "groups.csv"
    path.write_text("file_name,label,group\n" + "".join(
        f'{name},{name[0]},"{group}"\n' for name, group in zip(NAMES, groups)), "utf-8")
    return str(path)


@pytest.mark.parametrize("missing", MISSING)
def test_a_group_that_is_not_known_is_named_and_counted(tmp_path, missing):
    path = table(tmp_path, ["p1", missing, "p2", missing, "p3", missing])
    with pytest.raises(Fault) as refused:
        group_ids(SOURCES, path, None)
    words = f"3 of 6 images have no group in {path} (3 {missing.strip()!r}): 'a/1.png', 'b/0.png'"
    assert words in str(refused.value) and "--unknown-groups own" in str(refused.value)


def test_originals_of_unknown_groups_are_groups_of_their_own(tmp_path):
    path = table(tmp_path, ["p1", "nan", "p1", "-", "nan", "NA"])
    found, given, warnings = group_ids(SOURCES, path, None, "own")
    assert found == {"a/0.png": "p1", "a/1.png": "a/1.png", "a/2.png": "p1", "b/0.png": "b/0.png",
                     "b/1.png": "b/1.png", "b/2.png": "b/2.png"}
    assert given == "csv" and len(warnings) == 1
    assert warnings[0].startswith(f"unknown groups: 4 of 6 images have no group in {path} "
                                  "(2 'nan', 1 '-', 1 'NA'); ")


def test_a_pattern_may_find_words_that_name_nobody():
    names = ("a/p1_1.png", "a/nan_1.png", "b/NA_2.png")
    found = [Source(Path(name), name, name[0]) for name in names]
    with pytest.raises(Fault, match=r"2 of 3 images have .* --group-regex \(1 'nan', 1 'NA'\)"):
        group_ids(found, None, "/(.*)_")
    assert group_ids(found, None, "/(.*)_", "own")[0] == dict(zip(names, ("p1", *names[1:])))


@pytest.mark.parametrize("group", ["0", "nano", "NA1", "p-1", "unknown site 3"])
def test_other_words_are_groups(tmp_path, group):
    path = table(tmp_path, [group, "p", "p", group, "q", "q"])
    found, _, warnings = group_ids(SOURCES, path, None)
    assert found["a/0.png"] == found["b/0.png"] == group and warnings == []
