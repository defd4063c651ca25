"""Repeats: which are complete, who makes those that are not, what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lungkit.data import repeats, result
from lungkit.run import faults, output
from result_trees import identity, write_repeat as write


def there(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ------------------------------------------------------------------ which are complete

def test_what_was_made_by_the_same_identity_is_complete(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 12345)
    asked = [identity(repeat) for repeat in (0, 1, 12345)]
    assert repeats.survey(tmp_path, asked) == ({}, [asked[1]])


@pytest.mark.parametrize("name, value", [
    ("dataset", "other"), ("dataset_fingerprint", "d2"), ("real_fingerprint", "r2"),
    ("replicate", 1), ("seed", 11), ("model", "resnet18"),
    ("settings", {"steps": 7, "recipe": 2, "weights_sha256": None}),
    ("settings", {"steps": 6, "recipe": 1, "weights_sha256": None}),
    ("settings", {"steps": 6, "weights_sha256": None}),
    ("settings", {"steps": 6, "recipe": 2, "weights_sha256": None, "trees": 200}),
    ("settings", {"steps": 6, "recipe": 2, "weights_sha256": "f" * 64})])
def test_what_was_made_otherwise_is_not_complete_and_says_why(tmp_path, name, value):
    write(tmp_path, **{name: value})
    asked = [identity()]
    stale, pending = repeats.survey(tmp_path, asked)
    if name == "settings":
        name, = {each for each in value | asked[0]["settings"]
                 if value.get(each) != asked[0]["settings"].get(each)}
    assert pending == asked and list(stale) == [0]
    assert stale[0].startswith(f"repeat 0: {name}: ") and ";" not in stale[0]


def test_results_outside_the_asked_range_count_too(tmp_path):
    write(tmp_path, 7, seed=16)  # SEED 9, where SEED 10 is asked for
    asked = [identity(repeat) for repeat in (2, 3)]
    stale, pending = repeats.survey(tmp_path, asked)
    assert list(stale) == [7] and "seed: 16 there, 17 now" in stale[7] and pending == asked


# ------------------------------------------------------------------ who makes what is missing

def test_only_stale_results_are_discarded_with_all_that_is_theirs(tmp_path):
    for repeat, model in ((0, "small"), (1, "resnet18"), (2, "small"), (5, "resnet18")):
        write(tmp_path, repeat, model=model)
    result.repeat_path(tmp_path, 1).with_suffix(".png").touch()
    repeats.discard(tmp_path, [identity(0), identity(1)])
    assert there(tmp_path) == ["repeat_0000.json", "repeat_0000.npz",
                               "repeat_0002.json", "repeat_0002.npz"]


def test_a_stale_result_is_not_discarded_while_another_process_redoes_it(tmp_path, monkeypatch):
    write(tmp_path, 0, model="resnet18")
    held = output.try_lock(result.repeat_path(tmp_path, 0))
    repeats.discard(tmp_path, [identity()])
    assert "repeat_0000.json" in there(tmp_path)
    output.release(held, result.repeat_path(tmp_path, 0))

    def lock_after_it_was_redone(path):
        write(tmp_path, 0)
        return output.try_lock(path)

    monkeypatch.setattr(repeats, "try_lock", lock_after_it_was_redone)
    repeats.discard(tmp_path, [identity()])
    assert repeats.survey(tmp_path, [identity()]) == ({}, [])
    assert there(tmp_path) == ["repeat_0000.json", "repeat_0000.npz"]


def test_every_missing_repeat_is_done_once_and_no_other(tmp_path):
    write(tmp_path, 1)
    done = []

    def work(asked):
        done.append(asked["repeat"])
        write(tmp_path, asked["repeat"])

    for _ in range(2):
        repeats.share(tmp_path, [identity(repeat) for repeat in range(4)], work)
        assert done == [0, 2, 3]
    assert not [name for name in there(tmp_path) if name.endswith(".lock")]


def test_what_another_process_has_done_meanwhile_is_not_done_again(tmp_path):
    write(tmp_path, 0, accuracy=0.25)
    assert repeats.take(tmp_path, identity(), lambda _: pytest.fail("done twice"))
    assert result.read_records(tmp_path)[0]["accuracy_real"] == 0.25


def test_results_of_other_options_written_meanwhile_end_the_sharing(tmp_path, monkeypatch):
    looks = iter([None] * 5)  # then StopIteration: it would go on for ever
    monkeypatch.setattr(repeats, "check_stop", lambda: next(looks))

    def work(asked):
        write(tmp_path, asked["repeat"])
        write(tmp_path, 1, model="resnet18")

    with pytest.raises(faults.BadOptions, match="another process writes other results.*model: "):
        repeats.share(tmp_path, [identity(0), identity(1)], work)


def test_sharing_ends_only_when_the_others_have_ended(tmp_path, monkeypatch):
    path = result.repeat_path(tmp_path, 0)
    held, looks = output.try_lock(path), []

    def look():
        looks.append(None)
        if len(looks) == 4:
            write(tmp_path, 0)
            output.release(held, path)

    monkeypatch.setattr(repeats, "POLL_INTERVAL_SEC", 0)
    monkeypatch.setattr(repeats, "check_stop", look)
    repeats.share(tmp_path, [identity()], lambda _: pytest.fail("done twice"))
    assert repeats.survey(tmp_path, [identity()]) == ({}, [])


def test_a_failed_repeat_is_free_for_the_next_and_what_a_kill_left_of_it_goes(tmp_path):
    def fail(_):
        raise faults.Fault("no luck")

    with pytest.raises(faults.Fault, match="no luck"):
        repeats.take(tmp_path, identity(), fail)
    for name in (".repeat_0000.77.tmp.npz", ".repeat_0001.77.tmp.npz", ".repeat_0000.partial"):
        (tmp_path / name).touch()
    assert repeats.take(tmp_path, identity(), lambda asked: write(tmp_path, asked["repeat"]))
    assert there(tmp_path) == [".repeat_0000.partial", ".repeat_0001.77.tmp.npz",
                               "repeat_0000.json", "repeat_0000.npz"]


def test_locks_that_a_kill_left_beside_a_record_go_and_those_of_others_stay(tmp_path):
    for repeat in (0, 1):
        write(tmp_path, repeat)
    paths = [result.repeat_path(tmp_path, repeat) for repeat in range(3)]
    tmp_path.joinpath(f".{paths[0].name}.lock").touch()
    held = [output.try_lock(path) for path in paths[1:]]
    repeats.share(tmp_path, [identity(0), identity(1)], lambda _: pytest.fail("done twice"))
    assert [name for name in there(tmp_path) if name.endswith(".lock")] == [
        f".{path.name}.lock" for path in paths[1:]]
    for file, path in zip(held, paths[1:]):
        output.release(file, path)


# ------------------------------------------------------------------ what a stage asks for

def ask(results, *numbers, kind="cnn", overwrite=False, **changed):
    return repeats.open_repeats(results, [identity(repeat, **changed) for repeat in numbers],
                                kind=kind, overwrite=overwrite)


def test_what_is_asked_for_is_complete_pending_or_of_other_options(tmp_path, capsys):
    directory = result.replicate_dir(tmp_path, "pool", 0)
    assert not ask(tmp_path, 0).are_complete and not tmp_path.joinpath("pool").exists()
    write(directory, 0)
    write(directory, 3)
    assert ask(tmp_path, 0).are_complete and ask(tmp_path, 0, 3).records() == [
        result.read_record(result.repeat_path(directory, repeat)) for repeat in (0, 3)]
    asked = ask(tmp_path, 0, 1, 2)
    assert not asked.are_complete and asked.pending == asked.identities[1:]
    asked.say_plan()
    assert capsys.readouterr().err == f"found 1, pending 2 of 3 repeats in {directory}\n"
    with pytest.raises(faults.BadOptions, match="holds results of other options or datasets "
                       r"\(repeat 0: model: 'small' there, 'resnet18' now\): use the same options"):
        ask(tmp_path, 0, 1, model="resnet18")
    other = ask(tmp_path, 0, 1, model="resnet18", overwrite=True)
    other.say_plan()
    assert not other.are_complete and other.pending == other.identities
    assert capsys.readouterr().err == (f"found 0, pending 2 of 2 repeats in {directory}, "
                                       "discarding 2 of other options\n")
    assert len(there(directory)) == 4
    other.make(lambda identity: write(directory, identity["repeat"], model="resnet18"))
    assert ask(tmp_path, 0, 1, model="resnet18").are_complete and len(there(directory)) == 4


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("there_is", "asked"), [("cnn", "baseline"), ("baseline", "cnn")])
def test_a_name_that_another_kind_has_taken_is_refused(tmp_path, there_is, asked, overwrite):
    """A dataset named as the baseline is; not even --overwrite takes its results away."""
    directory = result.replicate_dir(tmp_path, "pool", 0)
    write(directory, 5, **({"kind": there_is} if there_is != "cnn" else {}))
    with pytest.raises(faults.BadOptions, match=f"{directory} holds the results of another kind "
                       rf"\({there_is}, not {asked}\) under the name pool: "):
        ask(tmp_path, 0, kind=asked, overwrite=overwrite)
    assert ask(tmp_path, 0, kind=there_is).pending


def test_a_result_of_the_code_before_counts_as_complete(tmp_path):
    """lungkit.result/1, as tests/fixtures/v1 keeps them."""
    kept = Path(__file__).resolve().parents[2] / "fixtures/v1/results"
    path = sorted(kept.glob("*/replicate_000/repeat_*.json"))[0]
    record = json.loads(path.read_text())
    assert record["schema"] == "lungkit.result/1"
    asked = {name: record[name] for name in result.IDENTITY if name in record}
    kind = record.get("kind", "cnn")
    assert repeats.open_repeats(kept, [asked], kind=kind, overwrite=False).are_complete
    assert not repeats.open_repeats(kept, [asked | {"model": "other"}], kind=kind,
                                    overwrite=True).are_complete


def test_mean_deviation_and_number_are_of_the_repeats_asked_for(tmp_path, capsys):
    directory = result.replicate_dir(tmp_path, "pool", 0)
    for repeat, accuracy in enumerate((0.5, 0.6, 0.9, 0.1)):
        write(directory, repeat, accuracy=accuracy)
    repeats.report(ask(tmp_path, 0, 1, 2), "complete")
    assert capsys.readouterr().out == (
        "pool complete: accuracy_real mean 0.6667 sd 0.2082  accuracy_own mean 0.3333 sd 0.1041  "
        f"n 3  {directory}\n")
    repeats.report(ask(tmp_path, 3), "already complete")
    assert "accuracy_real mean 0.1000 sd -" in capsys.readouterr().out
