"""The records: where they lie, how they are told apart and written, and their page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lungkit.data import result
from result_trees import PAGE, identity, keys_of, keys_on_page, write_repeat as write


def there(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ------------------------------------------------------------------ places and identity

def test_a_record_lies_by_arm_replicate_and_repeat(tmp_path):
    directory = result.replicate_dir(tmp_path, "pool", 3)
    assert directory == tmp_path / "pool" / "replicate_003"
    assert result.repeat_path(directory, 12) == directory / "repeat_0012.json"
    assert result.checkpoint_path(directory, 12) == directory / ".repeat_0012.partial"


def test_a_difference_names_both_sides_and_cuts_hashes_short():
    changed = result.differences(identity(dataset_fingerprint="0123456789abcdef" * 4), identity())
    assert changed == ["dataset_fingerprint: '0123456789ab...' there, 'd1' now"]
    assert result.differences({**identity(), "train_loss": 2}, identity()) == []


# ------------------------------------------------------------------ writing

def test_where_the_json_is_the_probabilities_are_whole(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(result, "write_bytes", fail)
        write(tmp_path)
    assert there(tmp_path) == []
    write(tmp_path)
    assert there(tmp_path) == ["repeat_0000.json", "repeat_0000.npz"]


def test_what_differs_from_run_to_run_is_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    write(tmp_path / "x")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    write(tmp_path / "y")
    x, y = (json.loads((tmp_path / name / "repeat_0000.json").read_text()) for name in "xy")
    assert x.pop("run").keys() == {"elapsed_sec", "host", "job", "finished_at", "commit",
                                   "dirty", "command"}
    assert y.pop("run")["job"] == "78"
    assert x == y == {**identity(), "schema": "lungkit.result/2", "accuracy_real": 0.5,
                      "accuracy_own": 0.25}
    assert (tmp_path / "x/repeat_0000.npz").read_bytes() == \
        (tmp_path / "y/repeat_0000.npz").read_bytes()


# ------------------------------------------------------------------ the page

def test_the_example_of_the_page_is_a_record():
    example = json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    result.check_record(example, Path("voronoi/replicate_000/repeat_0000.json"))
    assert keys_of(example) == keys_on_page("The record")
    assert all(tuple(example["scores"][split]) == result.SCORES["classify"]
               for split in result.SPLITS)
