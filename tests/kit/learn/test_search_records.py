"""A search's directory: each training once, by whoever is free; the rest is waited for."""

from __future__ import annotations

import pytest

from lungkit.learn import search_records
from lungkit.learn.search_records import Records
from lungkit.run.faults import Stopped, forget_signals, note_signal
from lungkit.run.files import write_json
from lungkit.run.output import release, try_lock


@pytest.fixture
def records(tmp_path) -> Records:
    found = Records(tmp_path / "search", {"seed": 0})
    found.begin()
    return found


def test_what_another_holds_is_left_to_it_and_waited_for(records, monkeypatch, capsys):
    held = try_lock(records.path("a"))
    done = []

    def ends(_):  # the other one, meanwhile
        done.append("waited")
        write_json(records.path("a"), {"by": "another"})
        release(held, records.path("a"))

    monkeypatch.setattr(search_records.time, "sleep", ends)
    found = records.share(["a", "b", "c"], lambda name: done.append(name) or {"by": name})
    assert done == ["b", "c", "waited"]
    assert found == {"a": {"by": "another"}, "b": {"by": "b"}, "c": {"by": "c"}}
    assert "waiting for them" in capsys.readouterr().err
    assert records.share(["c", "a"], None) == {"c": {"by": "c"}, "a": {"by": "another"}}


def test_a_stop_comes_between_trainings_and_a_failure_leaves_none_behind(records):
    def stops(name):
        note_signal(15, None)
        return {"by": name}

    try:
        with pytest.raises(Stopped):
            records.share(["a", "b"], stops)
    finally:
        forget_signals()
    assert records.get("a") and records.get("b") is None
    with pytest.raises(ZeroDivisionError):
        records.take("b", lambda: 1 / 0)
    assert records.get("b") is None and records.take("b", lambda: {"by": "b"})


def test_a_checkpoint_ends_with_its_training(records):
    def work():
        records.checkpoint_path("a").write_bytes(b"half way")
        return {}

    assert records.take("a", work) and not records.checkpoint_path("a").exists()


def test_what_a_kill_left_of_a_training_s_files_goes_with_its_next_try(records):
    folder = records.path("a").parent
    folder.mkdir()
    for name in (".a.7.tmp.json", "..a.checkpoint.7.tmp.pt", ".aa.7.tmp.json"):
        (folder / name).touch()
    records.take("a", dict)
    assert {path.name for path in folder.iterdir()} == {"a.json", ".aa.7.tmp.json"}


def test_a_kill_leaves_a_directory_that_the_same_command_can_begin(tmp_path, records, monkeypatch):
    """While the first file is written, and while another search is discarded."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new/.search.7.tmp.json").touch()
    Records(tmp_path / "new", {"seed": 0}).begin()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["search.json"]
    records.take("a", dict)
    again = Records(records.directory, {"seed": 1}, overwrite=True)

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("write_json", "shutil.rmtree"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"lungkit.learn.search_records.{name}", killed)
            again.begin()
        records.path("b").parent.mkdir(exist_ok=True)  # for the second kill there is something left
    again.begin()
    assert again.get("a") is None and Records(records.directory, {"seed": 1}).check() is None


def test_overwrite_discards_another_search_alone(records):
    records.take("a", dict)
    for seed, kept in ((0, {}), (1, None)):
        again = Records(records.directory, {"seed": seed}, overwrite=True)
        again.begin()
        assert again.get("a") == kept
