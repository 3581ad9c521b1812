"""A rank that is missing is named, with what it was doing, and nobody waits for it for longer than the config says."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import runs
import torch.distributed as dist
import warm
from in_process import train_here
from photographs import shards_of
from scripts import answers
from torch.multiprocessing.spawn import ProcessExitedException

from dist_train import heartbeat, ranks, training
from dist_train.__main__ import main
from dist_train.data import PatchReader, TrainingVisits, patch_batches
from dist_train.errors import TrainingError
from dist_train.heartbeat import PULSE, Beat, Pulse, doing, why_nothing_moves
from dist_train.last_words import say_last
from dist_train.order import Order
from dist_train.run_lock import RunLock
from shards.manifest import Label, ShardError, Shards

LABEL = Label("pseudo-opinion", 0.0, 100.0, True)
OWN = Beat(0, "n1", 100, 9, 40, True, "step 8: the gradient")


def later(beat: Beat) -> Beat:
    return replace(beat, number=beat.number + 1)


def test_a_rank_that_is_alive_and_has_not_come_is_named_with_what_it_does() -> None:
    late = Beat(1, "n2", 200, 9, 39, False, "step 8: waiting for a batch (worker 0 reads 'cup' in /data/shard-000003.tar)")
    said = why_nothing_moves(OWN, 600, [OWN, late], [later(OWN), later(late)])
    assert "rank 1 (process 200 on n2) has not come, and is at: step 8: waiting for a batch (worker 0 reads 'cup'" in said
    assert said.startswith("rank 0 (process 100 on n1) has been at this for 600 s, which needs all ranks: step 8: the gradient; ")


def test_a_rank_that_has_come_and_still_beats_is_not_missing() -> None:
    late, there = Beat(1, "n2", 200, 9, 39, False, "reading"), Beat(2, "n3", 300, 9, 40, True, "step 8: the gradient")
    said = why_nothing_moves(OWN, 600, [OWN, late, there], [later(OWN), later(late), later(there)])
    assert "n2" in said
    assert "n3" not in said


def test_a_rank_whose_heart_stands_still_is_called_silent_wherever_it_was() -> None:
    frozen = Beat(1, "n2", 200, 9, 40, True, "step 8: the gradient")
    said = why_nothing_moves(OWN, 600, [OWN, frozen], [later(OWN), frozen])
    assert "rank 1 (process 200 on n2) is silent, and the last that was heard of it is: step 8: the gradient" in said


def test_a_rank_that_never_spoke_is_named_by_its_number() -> None:
    assert "rank 1 has never been heard of" in why_nothing_moves(OWN, 600, [OWN, None], [later(OWN), None])


def test_a_rank_that_is_missing_and_says_nothing_is_named_all_the_same() -> None:
    late = Beat(1, "n2", 200, 9, 39, False, "")
    said = why_nothing_moves(OWN, 600, [OWN, late], [later(OWN), later(late)])
    assert "rank 1 (process 200 on n2) has not come, and is at: something between what it tells of;" in said


def telling(work: Callable[..., Any], told: list[str]) -> Callable[..., Any]:
    """A function that does the same, and leaves what its process says that it does."""

    def tells(*arguments: Any) -> Any:
        told.append(PULSE.beat(0).doing)
        return work(*arguments)

    return tells


def test_what_a_run_does_before_its_first_step_is_told_too(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for owner, name in ((training, "make_plan"), (RunLock, "take"), (training, "enter_run_folder"), (training, "open_training")):
        monkeypatch.setattr(owner, name, telling(getattr(owner, name), told))
    train_here(tmp_path, shards)
    assert told == ["opening the shards", "taking the lock of the run folder", "entering the run folder", "opening the run"]


def test_a_rank_that_never_comes_is_named_with_where_the_others_are(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_rank(monkeypatch, tmp_path, 0)
    ended = warm.run("train", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", "run.timeout_minutes=0.01")
    assert ended.returncode == 1
    where = f"127.0.0.1:{os.environ['MASTER_PORT']}"
    expected = f"error: not all of 2 processes have come to {where} within 10.6 s: rank 1 has not; here are 0 on {os.uname().nodename}; "
    assert ended.stderr.splitlines()[-1].startswith(expected)
    assert "Traceback" not in ended.stderr
    assert_the_scripts_go_on(tmp_path, ended.stderr)


def come_and_go() -> None:
    """A process that comes, and dies before it joins the others."""
    os.environ["RANK"] = "1"
    ranks._call_the_roll(2, kept_by_launcher=False, patience=timedelta(seconds=60))


def test_processes_that_have_started_and_do_not_reach_each_other_say_so(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_rank(monkeypatch, tmp_path, 0)
    multiprocessing.get_context("fork").Process(target=come_and_go).start()
    ended = warm.run("train", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", "run.timeout_minutes=0.01")
    assert ended.returncode == 1
    assert "error: the processes have all started, but do not reach each other (" in ended.stderr.splitlines()[-1]
    assert_the_scripts_go_on(tmp_path, ended.stderr)


def keep_a_store(port: int, is_kept: Event) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    is_kept.set()
    time.sleep(60)
    del store


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (
            "rank 0",
            r"rank 0, which kept the key-value store at 127\.0\.0\.1:\d+, has gone 1 s after this process came, before all of 2 had",
        ),
        ("the launcher", r"the launcher does not answer at 127\.0\.0\.1:\d+: it was ended while this process was starting"),
    ],
)
def test_whoever_kept_the_store_and_has_gone_while_others_wait_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, said: str
) -> None:
    set_rank(monkeypatch, tmp_path, 1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(by == "the launcher"))
    monkeypatch.setattr(ranks._Link, "roll", None)
    processes = multiprocessing.get_context("fork")
    is_kept = processes.Event()
    keeper = processes.Process(target=keep_a_store, args=(int(os.environ["MASTER_PORT"]), is_kept))
    keeper.start()
    assert is_kept.wait(30)
    threading.Timer(1, keeper.kill).start()
    with pytest.raises(TrainingError, match=said) as found, ranks.joining(timedelta(seconds=30)):
        pass
    keeper.join()
    say_last(found.value, f"error: {found.value}")
    assert_the_scripts_go_on(tmp_path, f"error: {found.value}\n")


def set_rank(monkeypatch: pytest.MonkeyPatch, place: Path, rank: int) -> None:
    """What torchrun would tell this process, if it were one of two, its error file being `place`/errors/said."""
    (place / "errors").mkdir()
    variables = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": warm.free_port()}
    for name, value in (variables | {"TORCHELASTIC_ERROR_FILE": place / "errors" / "said"}).items():
        monkeypatch.setenv(name, str(value))


def assert_the_scripts_go_on(place: Path, log: str) -> None:
    """Both take what stands in a process's error file, and in the log, for a loss; and a refusal for one."""
    earlier, error_file = "error: of an earlier turn\n", place / "errors" / "said"
    for said, is_refusal in ((error_file.read_text(), False), (json.dumps({"message": "error: optim.lr is negative"}), True)):
        error_file.write_text(said)
        (place / "log").write_text(earlier + log + "error: optim.lr is negative\n" * is_refusal)
        variables = f"id=1 errors={place}/errors log={place}/log log_before={len(earlier)}"
        assert answers("launch/elastic.sh", "refused", variables) is is_refusal
        assert answers("slurm/train.sh", "lost_a_process", variables) is not is_refusal


def test_where_nobody_is_missing_the_network_is_named() -> None:
    there = Beat(1, "n2", 200, 9, 40, True, "step 8: the gradient")
    assert "the fault lies between them" in why_nothing_moves(OWN, 600, [OWN, there], [later(OWN), later(there)])


def test_a_rank_that_is_stuck_by_itself_blames_nobody() -> None:
    own, other = replace(OWN, needs_all=False, doing="step 8: waiting for a batch"), Beat(1, "n2", 200, 9, 1, False, "reading")
    said = why_nothing_moves(own, 600, [own, other], [later(own), later(other)])
    assert "has been at this for 600 s: step 8: waiting for a batch" in said
    assert "n2" not in said
    assert "network or its settings" not in said


def test_a_pulse_tells_the_innermost_of_what_is_done_and_counts_meetings() -> None:
    pulse = Pulse()
    assert not pulse.is_busy
    with pulse.doing("step 3"):
        assert pulse.beat(1).doing == "step 3"
        with pulse.meeting("the gradient"), pulse.meeting("gathering"):
            beat = pulse.beat(1)
            assert (beat.doing, beat.meetings, beat.needs_all) == ("step 3: the gradient: gathering", 2, True)
        changes = pulse.changes
        with pulse.doing("reading", lambda: "shard 7"):
            assert pulse.beat(1).doing == "step 3: reading (shard 7)"
            assert not pulse.beat(1).needs_all
        assert pulse.changes > changes
    assert not pulse.is_busy
    assert Beat.from_json(beat.to_json()) == beat


@pytest.mark.parametrize("error", [ShardError("the disk is gone"), RuntimeError("changed meanwhile"), KeyError("cup"), MemoryError()])
def test_an_error_in_telling_becomes_part_of_the_beat_and_is_printed_once(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_complaints", set())

    def fail() -> str:
        raise error

    pulse = Pulse()
    with pulse.doing("step 3"), pulse.doing("reading", fail):
        for _ in range(3):
            assert pulse.beat(1).doing == f"step 3: reading (more cannot be told: {type(error).__name__}: {error})"
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"this process goes on, but cannot tell more of what it is at, 'reading': {type(error).__name__}: {error}" in printed


def test_what_cannot_be_told_at_once_holds_up_neither_the_beat_nor_the_next_and_is_told_when_it_is_known() -> None:
    gate, asked = threading.Event(), list[int]()

    def tell() -> str:
        asked.append(1)
        assert gate.wait(60)
        return "shard 7"

    pulse = Pulse()
    with pulse.doing("reading", tell):
        started = time.monotonic()
        for _ in range(5):
            assert pulse.beat(1).doing == "reading (more cannot be told: no answer yet)"
        assert time.monotonic() - started < 5
        assert len(asked) == 1
        gate.set()
        end = time.monotonic() + 30
        while (told := pulse.beat(1).doing) != "reading (shard 7)" and time.monotonic() < end:
            time.sleep(0.05)
        assert told == "reading (shard 7)"


def raise_an_error() -> str:
    raise RuntimeError("a mistake of ours")


def never_answer() -> str:
    time.sleep(600)
    return ""


def wait_for_one_that_reads_on(rank: int, port: int, record: Path) -> None:
    """Rank 1 reads one thing after the other, rank 0 waits for it and writes down why it gives up."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks._TICK = 0.25  # twice as fast, with all that is counted in ticks
    dist.init_process_group("gloo", rank=rank, world_size=2)
    ranks.connect(timedelta(seconds=6), lambda error: (record / str(rank)).write_text(str(error)))
    if rank == 0:
        ranks.agree(False)
    while True:
        with doing("reading", raise_an_error), doing("asking", never_answer):
            time.sleep(2)


def test_a_rank_that_cannot_tell_where_it_is_still_beats_and_ends_with_the_others(tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException):
        warm.spawn(wait_for_one_that_reads_on, tmp_path, world=2)
    told = "reading (more cannot be told: RuntimeError: a mistake of ours): asking (more cannot be told: no answer yet)"
    why = [path.read_text() for path in tmp_path.iterdir()]
    assert len(why) == 1
    # One whose watch is dead would be called silent, and would not end.
    assert re.search(rf"; rank 1 \(process \d+ on [^)]*\) has not come, and is at: {re.escape(told)};", why[0]), why


@pytest.mark.parametrize("detail", [raise_an_error, never_answer])
def test_the_last_resort_ends_a_process_that_cannot_tell_where_it_is(
    detail: Callable[[], str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "_LAST_RESORT", 0.0)
    monkeypatch.setattr(ranks, "world", lambda: 2)  # one that is alone says it by itself
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")

    def stand_still() -> None:
        with doing("reading", detail):
            ranks._count_standing_still(0.5, threading.Event())

    process = multiprocessing.get_context("fork").Process(target=stand_still)
    process.start()
    process.join(30)
    process.kill()
    assert re.search(
        r"rank 0 ends: rank 0 .* has been at this for 1 s: reading \(more cannot be told: .*\); and who is missing", capfd.readouterr().err
    )


def test_a_process_alone_whose_run_folder_does_not_answer_either_says_why_and_ends(tmp_path: Path) -> None:
    script = """
import threading
from dist_train import ranks
from dist_train.errors import TrainingError
ranks._LAST_RESORT = 0.5
ranks._Link.record = lambda error: threading.Event().wait()  # as where a file server is dead
ranks._end_all(TrainingError("the disk is waited for in vain"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "rank 0 ends: the disk is waited for in vain (and the run folder does not answer" in done.stderr


def test_a_beat_names_the_image_and_the_shard_that_a_loader_worker_is_at(shards: Path) -> None:
    """The worker is a real one; it is held up by a picture that it cannot get at before the test lets it."""
    opened = Shards(shards)
    gate = multiprocessing.get_context("fork").Event()

    class SlowDisk:
        place_of = staticmethod(opened.place_of)

        def read_patches(self, image: int, patches: list[int]) -> np.ndarray:
            assert gate.wait(60)
            return opened.read_patches(image, patches)

    _, parts = opened.split()
    order = Order(seed=3, num_images=len(parts["train"]), stored_patches=4, patches_per_image=2, passes=1, global_batch=4)
    batches = patch_batches(PatchReader(SlowDisk(), TrainingVisits(order, parts["train"], True, 0, 1), 0, 1), 4, workers=1)
    reading = threading.Thread(target=lambda: list(batches))
    reading.start()
    first = int(parts["train"][order.batch(0).images[0]])
    end = time.monotonic() + 30
    while "worker 0 reads" not in PULSE.beat(0).doing and time.monotonic() < end:
        time.sleep(0.05)
    assert PULSE.beat(0).doing == f"waiting for a batch (worker 0 reads {opened.place_of(first)})"
    assert opened.ids[first] in opened.place_of(first)
    assert "shard-0000" in opened.place_of(first)
    gate.set()
    reading.join(30)
    assert PULSE.beat(0).doing == ""


@pytest.mark.parametrize("what", ["rank", "loader worker"])
def test_a_process_that_is_stopped_is_named_and_ends_the_run_in_the_time_that_the_config_grants(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3")  # what torchrun gives a stopped rank to end by itself; 30 unless told
    process = runs.start(2, tmp_path, shards, "train.epochs=200", "stop.patience=null", "run.timeout_minutes=0.25")
    runs.wait_for_step(process, tmp_path, 2)
    rank = runs.rank_process(process, 1)
    (rank if what == "rank" else min(rank.children(), key=psutil.Process.create_time)).suspend()
    began = time.monotonic()
    output = runs.finish(process)
    assert time.monotonic() - began < 15 + 45
    assert process.returncode != 0
    reason = runs.status(tmp_path)["reason"]
    assert runs.status(tmp_path)["status"] == "unfinished"
    expected = f"rank 1 (process {rank.pid} on "
    assert expected in reason
    assert ("is silent" if what == "rank" else "waiting for a batch") in reason
    assert [line for line in output.splitlines() if line.strip(" =")][-1].endswith("(run.timeout_minutes is how long nothing may move)"), (
        output[-3000:]
    )


def rank_1_reads_no_shards(words: Sequence[str]) -> int:
    if os.environ["RANK"] == "1":
        training.make_plan = lambda *_: time.sleep(600)  # type: ignore[assignment,return-value]
    return main(words)


def test_a_rank_that_is_silent_before_the_run_folder_is_entered_leaves_it_to_the_same_command(shards: Path, tmp_path: Path) -> None:
    words = ("train", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", "train.epochs=1", "data.workers=0")
    ended = warm.run(*words, "run.timeout_minutes=0.1", world=2, limit=90, work=rank_1_reads_no_shards)
    assert ended.returncode == 1
    assert "rank 1 (process" in ended.stderr and "opening the shards" in ended.stderr and "(run.timeout_minutes is how long" in ended.stderr
    assert warm.run(*words, world=2).returncode == 0
    assert runs.status(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("what", ["a stopped loader worker", "a killed loader worker", "a disk that does not answer"])
def test_a_run_of_one_process_that_waits_in_vain_says_for_what_and_ends_in_the_time_that_the_config_grants(
    photographs: Path, tmp_path: Path, what: str
) -> None:
    opened = shards_of(photographs, tmp_path / "shards", label=LABEL, patch_size=64, patches=4, shard_bytes=60_000)  # an image each
    folder = tmp_path / "run"
    image = int(opened.split()[1]["val"][0])
    shard = opened.folder / opened.files[int(opened.index[image]["shard"])]["file"]

    def strike() -> None:
        end, steps = time.monotonic() + runs.LIMIT, 2 if "worker" in what else 0
        while (not (folder / "metrics.jsonl").exists() or len(runs.records(folder, "step")) < steps) and time.monotonic() < end:
            time.sleep(0.02)
        if "worker" in what:
            rank = psutil.Process(json.loads((folder / "lock").read_text().splitlines()[0])["pid"])
            worker = min(rank.children(), key=psutil.Process.create_time)
            worker.suspend()
            if "killed" in what:
                time.sleep(2)  # so that the rank waits for it
                worker.kill()
        else:
            shard.unlink()
            os.mkfifo(shard)  # whoever opens it waits for a writer

    striker = threading.Thread(target=strike)
    striker.start()
    timeout = 0.5 if "killed" in what else 0.1  # minutes; a loader looks after its workers every five seconds
    settings = ("train.epochs=200", "stop.patience=null", f"data.workers={int('worker' in what)}", f"run.timeout_minutes={timeout}")
    ended = warm.run("train", runs.TINY, f"run.folder={folder}", f"data.shards={opened.folder}", *settings, limit=90)
    striker.join()
    assert ended.returncode == 1
    told = runs.status(folder)
    assert told["status"] == "unfinished"
    if "killed" in what:  # as the kernel does where memory is short
        last_line = ended.stderr.splitlines()[-1]
        assert re.fullmatch(
            r"error: lost another process: loader worker \d+ was killed \(SIGKILL, .*\); the same command goes on", last_line
        )
        assert told["reason"] == last_line.replace("error", "LostProcessError", 1)
        return
    at = f"judging epoch 0: waiting for a batch (worker 0 reads '{opened.ids[image]}' in {shard})"
    assert ("waiting for a batch" if "worker" in what else at) in told["reason"]
    assert ended.stderr.splitlines()[-1] == f"error: {told['reason'].removeprefix('LostProcessError: ')}"


ENDED_BY_ITS_WATCH = """
import multiprocessing, os, signal, sys, threading, time
from dist_train import flight_recorder, ranks
flight_recorder.LIMIT = 2
flight_recorder._distributed_c10d._dump_nccl_trace = lambda **_: time.sleep(600)
ranks.torch.cuda.is_available = lambda: True
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
os.kill(worker.pid, signal.SIGSTOP)
print(worker.pid, flush=True)
threading.Thread(target=ranks._exit).start()
worker.join()
ranks.claim_failure(RuntimeError("a loader worker was killed"))
print("this is told as the cause of the failure", flush=True)
"""


def test_a_rank_that_is_ended_takes_a_stopped_loader_worker_along_and_calls_that_no_failure_also_where_its_gpu_hangs(
    tmp_path: Path,
) -> None:
    environment = os.environ | {"TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/collectives-"}
    line = [sys.executable, "-c", ENDED_BY_ITS_WATCH]
    ended = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1
    worker = int(ended.stdout)  # and nothing else was said
    assert not psutil.pid_exists(worker)
