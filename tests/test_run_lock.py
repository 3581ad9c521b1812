"""A run folder has one owner at a time: a second job hears its name, and what a dead one left is in nobody's way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import warm

from dist_train import run_lock
from dist_train.errors import ConfigError, TrainingError
from dist_train.run_lock import Owner, RunLock, process_start, this_machine, turns_of, why_gone

ANOTHER_MACHINE = {"host": "node7", "machine": "node7 f00 pid:[1]", "turns": {}}


def owner(**changes: Any) -> Owner:
    return Owner.of_this_process().model_copy(update={"turns": {}} | changes)


def write_lock(folder: Path, whose: Owner, beat: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "lock"
    path.write_text(f"{whose.model_dump_json()}\n{beat:012d}")
    return path


def holder_of(folder: Path) -> Owner:
    return Owner.model_validate_json((folder / "lock").read_text().splitlines()[0])


def lock_of(folder: Path, said: list[str] | None = None) -> RunLock:
    return RunLock(folder, [].append if said is None else said.append)  # type: ignore[arg-type]


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[Callable[..., RunLock]]:
    """Makes locks of one folder, which are let go in the end."""
    made: list[RunLock] = []

    def make(said: list[str] | None = None) -> RunLock:
        made.append(lock_of(tmp_path / "run", said))
        return made[-1]

    yield make
    for lock in made:
        lock.release()


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and looks so quick that nobody waits for them."""
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    monkeypatch.setattr(run_lock, "POLL", 0.02)


@pytest.fixture
def nobody_else_knows_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lock of this process looks as if it were of another machine."""
    machines = iter(range(1000))
    monkeypatch.setattr(run_lock, "this_machine", lambda: f"machine {next(machines)}")


def test_whoever_holds_it_is_in_the_file_and_gone_from_it_in_the_end(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / "run")
    lock.take()
    holder = holder_of(tmp_path / "run")
    assert (holder.pid, holder.host, holder.machine) == (os.getpid(), os.uname().nodename, this_machine())
    lock.refuse_if_lost()
    lock.release()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_second_job_is_refused_at_once_with_the_name_of_the_first(tmp_path: Path, locks: Callable[..., RunLock]) -> None:
    first, second = locks(), locks()
    first.take()
    before = (tmp_path / "run" / "lock").read_bytes()
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=rf"another job is writing here: process {os.getpid()} on {os.uname().nodename} \(user .*since"):
        second.take()
    assert time.monotonic() - begun < run_lock.POLL
    second.release()
    assert (tmp_path / "run" / "lock").read_bytes() == before
    first.refuse_if_lost()


@pytest.mark.parametrize("gone", ["ended", "another process has its number", "a zombie"])
def test_a_lock_whose_process_is_gone_is_taken_over_at_once(tmp_path: Path, locks: Callable[..., RunLock], gone: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = owner(pid=child.pid, started=process_start(child.pid))
    if gone != "another process has its number":
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet taken notice of
    else:
        left = left.model_copy(update={"started": "17"})
    if gone == "ended":
        child.wait()
    write_lock(tmp_path / "run", left)
    said: list[str] = []
    begun = time.monotonic()
    locks(said).take()
    assert time.monotonic() - begun < run_lock.POLL
    assert holder_of(tmp_path / "run").pid == os.getpid()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert len(said) == 1 and f"left over from process {child.pid} on" in said[0] and "that process is gone" in said[0]
    child.kill()
    child.communicate()


@pytest.mark.usefixtures("in_a_hurry")
def test_a_dead_lock_of_another_machine_is_watched_and_then_taken_aloud(tmp_path: Path, locks: Callable[..., RunLock]) -> None:
    write_lock(tmp_path / "run", owner(**ANOTHER_MACHINE), beat=41)
    said: list[str] = []
    locks(said).take()
    assert holder_of(tmp_path / "run").pid == os.getpid() and holder_of(tmp_path / "run").host != "node7"
    assert "on node7" in said[0] and "watching for" in said[0] and "stood still" in said[1]


@pytest.mark.usefixtures("in_a_hurry", "nobody_else_knows_us")
def test_a_job_of_another_machine_that_beats_is_not_disturbed(locks: Callable[..., RunLock]) -> None:
    first, second, said = locks(), locks(said := []), said
    first.take()
    with pytest.raises(ConfigError, match="another job is writing here"):
        second.take()
    assert len(said) == 1 and "watching" in said[0]
    first.refuse_if_lost()


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("content", [b"", b"\0" * 400, b"{}\n000000000001", b'{"token": "../../elsewhere"}\n000000000001'])
def test_a_lock_that_nobody_can_read_is_watched_too(tmp_path: Path, locks: Callable[..., RunLock], content: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_bytes(content)
    said: list[str] = []
    locks(said).take()
    assert "somebody whose name cannot be read" in said[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


@pytest.mark.usefixtures("in_a_hurry")
def test_who_lets_go_while_watched_is_followed_at_once(
    tmp_path: Path, locks: Callable[..., RunLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lock(tmp_path / "run", owner(**ANOTHER_MACHINE))
    looks: list[float] = []
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: looks.append(seconds) or path.unlink())
    locks().take()
    assert len(looks) == 1 and holder_of(tmp_path / "run").host != "node7"


def test_an_earlier_turn_of_the_same_job_is_gone_wherever_it_ran() -> None:
    now = owner(turns={"Slurm job 12": 2, "torchelastic run a": 0})
    assert "start 1 of Slurm job 12, and this is start 2" in (why_gone(owner(turns={"Slurm job 12": 1}), now) or "")
    for turns in ({"Slurm job 12": 2}, {"Slurm job 12": 3}, {"Slurm job 13": 1}, {"torchelastic run b": 0}, {}):
        assert why_gone(owner(turns=turns, **{"host": "node7", "machine": "another"}), now) is None


def test_a_process_is_known_by_its_machine_number_and_start() -> None:
    me, alive, other = owner(machine="here"), owner(machine="here", pid=5, started="100"), owner(machine="there", pid=5, started="100")
    assert why_gone(alive, me, lambda _: "100") is None
    assert why_gone(alive, me, lambda _: "101") == why_gone(alive, me, lambda _: None) == "that process is gone"
    assert why_gone(other, me, lambda _: None) is None  # its number means nothing here
    assert why_gone(owner(machine=None, pid=5), owner(machine=None), lambda _: None) is None


def test_the_names_under_which_a_job_starts_again() -> None:
    slurm = {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "big", "TORCHELASTIC_RUN_ID": "12.1", "TORCHELASTIC_RESTART_COUNT": "3"}
    assert turns_of(slurm) == {"Slurm job 12 on big": 0, "torchelastic run 12.1": 3}
    assert turns_of(slurm | {"SLURM_RESTART_COUNT": "4"})["Slurm job 12 on big"] == 4
    assert turns_of({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}) == {}


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("lost", ["taken over", "deleted"])
def test_an_owner_that_has_lost_it_knows_before_it_writes_and_leaves_it_alone(
    tmp_path: Path, locks: Callable[..., RunLock], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(run_lock, "BEAT", 60)  # it is asleep
    lock = locks()
    lock.take()
    path = tmp_path / "run" / "lock"
    if lost == "taken over":
        other = write_lock(tmp_path / "other", owner(**ANOTHER_MACHINE))
        other.replace(path)
    else:
        path.unlink()
    lock.refuse_if_known_lost()
    with pytest.raises(TrainingError, match=r"taken over by process \d+ on node7" if lost == "taken over" else "lock is gone"):
        lock.refuse_if_lost()
    with pytest.raises(TrainingError):
        lock.refuse_if_known_lost()
    lock.release()
    assert path.exists() == (lost == "taken over")


@pytest.mark.usefixtures("in_a_hurry")
def test_a_beat_notices_the_loss_by_itself_and_never_writes_into_anothers_lock(tmp_path: Path, locks: Callable[..., RunLock]) -> None:
    lock = locks()
    lock.take()
    path = tmp_path / "run" / "lock"
    deadline = time.monotonic() + 10
    while path.read_bytes().endswith(b"0" * 12) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert int(path.read_bytes()[-12:]) > 0
    other = write_lock(tmp_path / "other", owner(**ANOTHER_MACHINE))
    content = other.read_bytes()
    other.replace(path)
    while lock._beats.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(TrainingError, match="taken over by process"):
        lock.refuse_if_known_lost()
    assert path.read_bytes() == content


def test_a_full_disk_does_not_keep_a_run_from_letting_go_quietly(
    tmp_path: Path, locks: Callable[..., RunLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = locks()
    lock.take()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_lock, "write_once", full)
        lock.release()
    assert holder_of(tmp_path / "run").pid == os.getpid()


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("claimant", ["dead here", "dead elsewhere"])
def test_one_who_died_while_taking_over_is_taken_over_too(tmp_path: Path, locks: Callable[..., RunLock], claimant: str) -> None:
    dead = owner(started="17")
    path = write_lock(tmp_path / "run", dead)
    second = owner(**ANOTHER_MACHINE) if claimant == "dead elsewhere" else owner(started="18")
    write_lock(tmp_path / "half", second).rename(path.with_name(f".lock-after-{dead.token}"))
    locks().take()
    assert holder_of(tmp_path / "run").started == process_start(os.getpid())
    assert [found.name for found in (tmp_path / "run").iterdir()] == ["lock"]


def race(folder: Path, start: Any, outcome: Any) -> None:
    """One of several processes that want the folder at the same moment; the winner keeps it until all have tried."""
    lock = lock_of(folder)
    start.wait()
    try:
        lock.take()
    except ConfigError:
        outcome.put("refused")
        start.wait()
    else:
        outcome.put("won")
        start.wait()
        lock.refuse_if_lost()
        outcome.put("kept")
        lock.release()


@pytest.mark.parametrize("left", ["nothing", "a stale lock", "a stale lock and a stale claim on it"])
def test_of_many_that_come_at_once_exactly_one_wins(tmp_path: Path, left: str) -> None:
    context, racers = multiprocessing.get_context("fork"), 6
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        if left != "nothing":
            dead = owner(started="17")
            path = write_lock(folder, dead)
            if "claim" in left:
                write_lock(tmp_path / "half", owner(started="18")).rename(path.with_name(f".lock-after-{dead.token}"))
        start, outcome = context.Barrier(racers, timeout=30), context.Queue()
        processes = [context.Process(target=race, args=(folder, start, outcome)) for _ in range(racers)]
        for process in processes:
            process.start()
        outcomes = sorted(outcome.get(timeout=30) for _ in range(racers + 1))
        for process in processes:
            process.join(timeout=30)
        assert outcomes == ["kept", *["refused"] * (racers - 1), "won"]
        assert list(folder.iterdir()) == []


LONG = ("train.epochs=200", "stop.patience=null", "data.workers=0")


def test_of_two_jobs_the_second_is_refused_the_first_undisturbed_and_a_killed_one_in_nobodys_way(shards: Path, tmp_path: Path) -> None:
    words = ("train", runs.TINY, f"run.folder={tmp_path}", f"data.shards={shards}", *LONG)
    with warm.running(*words) as first:
        runs.wait_for_step(first, tmp_path, 1)
        pid = first.ranks[0].pid
        assert holder_of(tmp_path).pid == pid
        second = warm.run(*words)
        assert second.returncode == 1
        assert f"another job is writing here: process {pid} on {os.uname().nodename}" in second.stderr.splitlines()[-1]
        runs.wait_for_step(first, tmp_path, len(runs.records(tmp_path, "step")) + 3)
        assert runs.status(tmp_path)["status"] == "unfinished"
        first.kill()
    said: list[str] = []
    lock = lock_of(tmp_path, said)
    lock.take()
    lock.release()
    assert len(said) == 1 and f"left over from process {pid}" in said[0] and "that process is gone" in said[0]
    assert not (tmp_path / "lock").exists()


def test_an_owner_that_was_suspended_and_taken_for_dead_ends_without_a_word_in_the_folder(shards: Path, tmp_path: Path) -> None:
    process = runs.start(2, tmp_path, shards, *LONG)
    runs.wait_for_step(process, tmp_path, 2)
    first = runs.rank_process(process, 0)
    while first.send_signal(signal.SIGSTOP) or runs.records(tmp_path, "step")[-1]["step"] % 5 not in (1, 2, 3):  # between two saves
        first.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    (tmp_path / "lock").unlink()
    lock = lock_of(tmp_path)  # a job of this test takes the folder
    lock.take()
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock" and ".part" not in str(path)
    }
    first.send_signal(signal.SIGCONT)
    output = runs.finish(process)
    assert process.returncode != 0
    assert "has been taken over by process" in [line for line in output.splitlines() if line.strip(" =")][-1]
    lock.refuse_if_lost()
    after = {path: path.read_bytes() for path in before if path.exists()}
    assert [path.name for path in before if after.get(path) != before[path]] == []  # not even the step that it was at
    lock.release()
