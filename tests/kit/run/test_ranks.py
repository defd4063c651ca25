"""Ranks: how they are known, what the first does alone, what is dealt out, how all of them end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import accelerate
import pytest
import torch  # before the ranks are forked: each would import it anew

from lungkit.run import cli, faults, ranks
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.launch import Place, find, first_host
from lungkit.run.output import Output
from lungkit.run.progress import say
from ranked import ended, start, together

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1",
            "MASTER_PORT": "29500"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[007-008]"}
# what a batch script, and a step of one task in it, see of an allocation of four
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
              "SLURM_JOB_NODELIST": "gpu[007-008]"}


def stage(run, *argv: str) -> int:
    """`run(**options)` as a stage whose ranks work together."""
    parser = cli.stage_parser("stage.py", "What it makes.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dry-run", action="store_true")
    return cli.main(parser, ranks.together(run), list(argv))


# ------------------------------------------------------------------ known

@pytest.mark.parametrize(("environment", "place"), [
    ({}, Place()), (TORCHRUN, Place(3, 4, 1, "n1", 29500)),
    ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, Place()),
    ({"RANK": "1", "WORLD_SIZE": "2"}, Place()),  # nobody said where to meet
    (ALLOCATION, Place()), ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, Place()),
    ({**ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
    ({**STEP, **TORCHRUN, "WORLD_SIZE": "8"}, Place(3, 8, 1, "n1", 29500)),  # one a node
    ({**STEP, **TORCHRUN, "WORLD_SIZE": "1"}, Place()),
    ({**STEP, "MASTER_ADDR": "n9", "MASTER_PORT": "1234"}, Place(3, 4, 1, "n9", 1234))])
def test_ranks_are_those_of_torchrun_or_of_a_slurm_step_of_several_tasks(environment, place):
    assert find(environment) == place


def test_ranks_of_a_step_meet_on_its_first_node_at_a_port_of_the_step_alone():
    place = find(STEP)
    assert (place.rank, place.number, place.local, place.address) == (3, 4, 1, "gpu007")
    assert find({**STEP, "SLURM_PROCID": "0"}).port == place.port
    ports = {find({**STEP, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(number)}).port
             for job in range(10) for number in range(3)}
    assert len(ports) > 27 and all(20000 <= port < 30000 for port in ports)


@pytest.mark.parametrize(("nodes", "host"), [
    ("n1", "n1"), ("n1,n2", "n1"), ("n[1-2]", "n1"), ("gpu-a[007-9,12]-ib,b1", "gpu-a007-ib"),
    ("r[1-2]n[03,05]", "r1n03"), ("n[5,7-9]", "n5")])
def test_the_first_of_slurms_hosts(nodes, host):
    assert first_host(nodes) == host


def test_a_process_that_is_alone_does_all_itself():
    asked = []
    assert stage(lambda **options: asked.append(
        (ranks.number(), ranks.is_first(), ranks.by_first(lambda: 5),
         list(ranks.dealt(abs, [-1, -2])), ranks.any_of(True, False)))) == 0
    assert asked == [(1, True, 5, [1, 2], [True, False])]


# ------------------------------------------------------------------ one does, all share

def test_the_first_rank_alone_does_and_all_have_what_came_of_it(tmp_path):
    def run(**options):
        def work() -> int:
            inner = ranks.by_first(lambda: 1) + ranks.number()
            with open(tmp_path / "done", "a") as file:
                file.write(f"{ranks.rank()}")
            return 40 + inner
        found = [ranks.by_first(work), ranks.by_first(lambda: {"path": str(tmp_path)})]
        (tmp_path / f"{ranks.rank()}.found").write_text(repr(found))

    assert together(lambda: stage(run), 3, tmp_path)[0] == [0, 0, 0]
    assert (tmp_path / "done").read_text() == "0", "others did it, too"
    assert {(tmp_path / f"{rank}.found").read_text() for rank in range(3)} == {
        repr([42, {"path": str(tmp_path)}])}


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_items_are_dealt_in_turn_and_all_have_all_in_order(count, tmp_path):
    def run(**options):
        def work(item: int) -> tuple[int, int]:
            return item * 10, ranks.rank()
        found = list(ranks.dealt(work, range(count)))
        (tmp_path / f"{ranks.rank()}.found").write_text(repr(found))

    assert together(lambda: stage(run), 3, tmp_path)[0] == [0, 0, 0]
    assert {(tmp_path / f"{rank}.found").read_text() for rank in range(3)} == {
        repr([(item * 10, item % 3) for item in range(count)])}


def test_none_begins_before_all_are_connected(tmp_path, monkeypatch):
    """One that had nothing to do and left broke the connections of the others to one another."""
    def slow(*args, kept=accelerate.PartialState, **how):
        state = kept(*args, **how)
        if how and ranks.rank() == 1:
            time.sleep(1)
            (tmp_path / "connected").touch()
        return state

    def run(**options):
        assert (tmp_path / "connected").exists()

    monkeypatch.setattr(accelerate, "PartialState", slow)
    assert together(lambda: stage(run), 3, tmp_path)[0] == [0, 0, 0]


def test_one_holds_the_output_for_all_and_speaks(tmp_path, monkeypatch):
    monkeypatch.setattr("ranked.LIMIT_SEC", 40)

    def run(**options):
        output = Output(tmp_path / "out", "x.json", {})
        with output.writing() as work_dir:
            say(f"{os.getpid()} holds {work_dir.name}")
            ranks.any_of(True)  # all are here, though one alone holds it
            if ranks.is_first():
                assert str(os.getpid()) in (tmp_path / ".out.lock").read_text()
        ranks.by_first(lambda: output.publish({}))
        assert ranks.see(tmp_path / "out" / "x.json").exists()

    statuses, said = together(lambda: stage(run), 2, tmp_path)
    assert statuses == [0, 0] and said[0].count("holds .out.partial") == 1 and not said[1]


def test_what_rank_0_wrote_and_a_node_never_shows_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "SEEN_SEC", 0.3)
    with pytest.raises(Fault, match="does not see .*/missing, which rank 0 has written"):
        ranks.see(tmp_path / "nowhere" / "missing")


# ------------------------------------------------------------------ ended

def waiting(rank: int, act):
    """A stage in which one rank acts, and the others wait for it in a step that all take."""
    def run(**options):
        ranks.any_of(True)
        if ranks.rank() == rank:
            act()
        ranks.any_of(True)
    return lambda: stage(run)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("error", "status", "words"), [
    (Fault("no image"), 1, "error: no image"), (BadOptions("--x"), 2, "error: --x"),
    (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: out of memory (CUDA out of memory)")])
def test_a_fault_of_one_rank_ends_all_and_is_told_once(rank, error, status, words, tmp_path):
    begun = time.monotonic()
    statuses, said = together(waiting(rank, lambda: throw(error)), 3, tmp_path)
    assert statuses == [status] * 3
    assert time.monotonic() - begun < 60
    line, = "".join(said).splitlines()
    assert line == said[rank].strip() and line.startswith(f"stage.py: rank {rank} of 3: {words}")


def test_ranks_that_wait_for_the_first_end_by_its_fault(tmp_path):
    def run(**options):
        ranks.by_first(lambda: throw(ValueError("a bug")))

    statuses, said = together(lambda: stage(run), 2, tmp_path)
    assert statuses == [99, 1] and "ValueError: a bug" in said[0] and not said[1]  # 99: of `fork`


def test_a_rank_that_waits_where_no_connection_breaks_is_ended_all_the_same(tmp_path):
    def run(**options):
        if ranks.rank() == 1:
            raise Fault("no image")
        time.sleep(300)  # as in a wait for a GPU

    statuses, said = together(lambda: stage(run), 2, tmp_path)
    assert statuses == [1, 1] and said == ["", "stage.py: rank 1 of 2: error: no image\n"]


def test_a_fault_that_all_have_is_told_once(tmp_path):
    def run(**options):
        raise BadOptions("--x and --y")

    statuses, said = together(lambda: stage(run), 3, tmp_path)
    assert statuses == [2, 2, 2] and len("".join(said).splitlines()) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_with_a_line(rank, tmp_path):
    statuses, said = together(waiting(rank, kill), 2, tmp_path)
    assert statuses[rank] == -9 and statuses[1 - rank] == 1
    line, = said[1 - rank].splitlines()
    assert "error: another rank is gone" in line and "run the same command again" in line


@pytest.mark.parametrize("rank", [0, 2])
def test_a_signal_to_one_rank_stops_all_of_them_at_one_step(rank, tmp_path):
    def run(**options):
        for step in range(1000):
            (tmp_path / f"{ranks.rank()}.step").write_text(str(step))
            if ranks.rank() == rank and step == 5:
                os.kill(os.getpid(), signal.SIGUSR2)
            ranks.check_stop()

    statuses, said = together(lambda: stage(run), 3, tmp_path)
    assert statuses == [75, 75, 75] and "".join(said) == said[0]
    assert "stopped by SIGUSR2; run the same command again" in said[0]
    assert {(tmp_path / f"{each}.step").read_text() for each in range(3)} == {"5"}


@pytest.mark.parametrize(("error", "status"), [
    (Fault("what was found"), 1), (BadOptions("what was given"), 2)])
def test_what_the_first_raises_ends_all_alike_and_is_told_once(error, status, tmp_path):
    def caught(**options):
        with pytest.raises(Fault) as raised:
            ranks.by_first(lambda: throw(error))
        (tmp_path / f"{ranks.rank()}.raised").write_text(repr(raised.value))

    assert together(lambda: stage(caught), 2, tmp_path)[0] == [0, 0]
    assert [(tmp_path / f"{rank}.raised").read_text() for rank in (0, 1)] == [repr(error)] * 2
    statuses, said = together(
        lambda: stage(lambda **options: ranks.by_first(lambda: throw(error))), 2, tmp_path)
    assert statuses == [status] * 2 and "".join(said).count(str(error)) == 1


def test_a_stop_while_the_first_works_alone_stops_all(tmp_path):
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        faults.check_stop()

    statuses, said = together(lambda: stage(lambda **options: ranks.by_first(work)), 2, tmp_path)
    assert statuses == [75, 75] and len("".join(said).splitlines()) == 1


def test_a_rank_that_never_comes_is_a_fault_of_all_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "CONNECT_SEC", 1)
    monkeypatch.setattr("os.environ", dict(os.environ))

    def alone() -> int:
        os.environ["WORLD_SIZE"] = "3"
        return stage(lambda **options: None)

    statuses, said = together(alone, 2, tmp_path)
    assert statuses == [1, 1]
    assert all("the 3 ranks did not meet at 127.0.0.1:" in each for each in said)


def test_a_dry_run_is_the_first_ranks_and_words_of_the_command_line_are_told_once(tmp_path):
    def run(**options):
        (tmp_path / f"{ranks.rank()}.planned").touch()

    assert together(lambda: stage(run, "--dry-run"), 2, tmp_path)[0] == [0, 0]
    assert [path.name for path in tmp_path.glob("*.planned")] == ["0.planned"]
    statuses, said = together(lambda: stage(lambda **options: None, "--word"), 2, tmp_path)
    assert statuses == [2, 2] and "--word" in said[0] and not said[1]


# ------------------------------------------------------------------ devices

class Words(dict):
    """A store of what other ranks have said."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self[key]


@pytest.mark.parametrize(("devices", "words"), [
    (["CPU", "CPU"], None), (["GPU a", "GPU b"], None),
    (["GPU a", "GPU a"], r"2 ranks were given 1 GPU\(s\)"),
    (["GPU a", "CPU"], "rank 1 sees no GPU and rank 0 one")])
def test_each_rank_has_a_gpu_of_its_own_or_none_has_one(devices, words, monkeypatch):
    monkeypatch.setattr(ranks._here, "place", Place(0, 2))
    monkeypatch.setattr(ranks._here, "store", Words({"device 1": devices[1].encode()}))
    if words is None:
        return ranks.check_devices(devices[0])
    with pytest.raises(BadOptions, match=words):
        ranks.check_devices(devices[0])


def test_tasks_of_different_commands_are_no_ranks_of_one_work(tmp_path):
    def other_steps() -> int:
        return stage(lambda **options: None, "--steps", os.environ["RANK"])

    statuses, said = together(other_steps, 2, tmp_path)
    line, = "".join(said).splitlines()
    assert statuses == [2, 2] and "the 2 tasks of this step were given different commands" in line


def test_ranks_refuse_the_name_of_one_gpu(tmp_path):
    statuses, said = together(lambda: stage(lambda **options: None, "--device", "cuda:1"), 2,
                              tmp_path)
    assert statuses == [2, 2] and "--device cuda:1 names one GPU" in said[0] and not said[1]


def test_what_hangs_is_found_by_these_tests(tmp_path, monkeypatch):
    monkeypatch.setattr("ranked.LIMIT_SEC", 1)
    assert ended(start(lambda: time.sleep(60) or 0, 1, Path(tmp_path))) == ["hangs"]
