"""`python -m dist_train doctor`, by real processes: it says what is wrong and where, trains nothing and leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import runs
import torch
import warm

from dist_train import ranks
from dist_train.__main__ import main
from dist_train.collection import open_collection
from dist_train.config import Data
from dist_train.doctor import Examination, look_at_folder, multiply, read_ends, read_shards, sources_digest
from dist_train.errors import ConfigError
from shards.manifest import ShardError, Shards


def skewed(_: Sequence[str]) -> int:
    """In place of dist_train: the clock of rank 1 is five seconds ahead, and rank 0 says what it finds."""
    ranks.join(60)
    true_time = time.time
    if ranks.rank() == 1:
        time.time = lambda: true_time() + 5
    for found in ranks.compare_clocks():
        print("ahead by", *found)
    sys.stdout.flush()
    ranks.disconnect()
    return 0


def deaf(words: Sequence[str]) -> int:
    """dist_train, of which rank 1 does not answer when the clocks are compared."""
    if os.environ["RANK"] == "1":
        ranks.compare_clocks = lambda: time.sleep(100)
    return main(words)


def test_two_processes_on_good_data_are_fit_and_nothing_stays_behind(shards: Path, tmp_path: Path) -> None:
    run, told = tmp_path / "runs" / "run", tmp_path / "told.json"
    started = runs.start(2, run, shards, "--json", str(told), command="doctor")
    output = runs.finish(started)
    assert started.returncode == 0, output
    assert re.search(r"^verdict: fit( with warnings)? \(", output, re.MULTILINE), output
    said = json.loads(told.read_text())
    assert said["fit"] and not [finding for check in said["checks"] for finding in check["findings"] if finding["severity"] == "error"]
    assert [report["rank"] for report in said["ranks"]] == [0, 1]
    assert sum(report["reading"]["images"] for report in said["ranks"]) == 60  # every image once, by one rank or the other
    assert "both ends of 2 of 2 read on every node" in next(check["found"] for check in said["checks"] if check["name"] == "shards")
    assert said["facts"]["sum_seconds"] > 0 and said["facts"]["small_seconds"] > 0 and len(said["facts"]["clocks"]) == 2
    assert all(report["seconds_of_work"] > 0 for report in said["ranks"])
    assert [path.name for path in tmp_path.iterdir()] == ["told.json"]


def test_a_shard_that_was_cut_off_is_named_and_the_rest_is_examined_all_the_same(shards: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(shards, tmp_path / "cut"))
    with (cut / "shard-000001.tar").open("r+b") as file:
        file.truncate(1000)
    ended = warm.run("doctor", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={cut}", world=2)
    output = ended.stdout + ended.stderr
    assert ended.returncode != 0
    assert re.search(r"found +shards: \S+/shard-000001\.tar: has\s+1000 bytes", output), output
    assert "(ranks 0, 1)" in output and "verdict: not fit (1 error)" in output
    assert re.search(r"^all-reduce +ok +found +26\.2 MB in ", output, re.MULTILINE), output


def test_shards_that_are_none_at_either_end_are_named_wherever_they_lie(own: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [own.folder / record["file"] for record in own.files]
    assert read_ends(paths, math.inf) == len(paths) == 6
    assert read_ends(paths, 0) == 0  # there was no time
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert read_ends(paths, math.inf) == 3
    paths[2].write_bytes(bytes(paths[2].stat().st_size))  # the other rank's
    assert read_ends(paths, math.inf) == 3
    paths[3].write_bytes(bytes(paths[3].stat().st_size))
    with paths[5].open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"1")
    with pytest.raises(
        ShardError, match=rf"^{paths[3]}: its first and its last block are not those of a shard .*; so it is with 1 others here"
    ):
        read_ends(paths, math.inf)
    paths[3].unlink()
    with pytest.raises(ShardError, match=rf"^{paths[3]}: .*No such file"):
        read_ends(paths, math.inf)


def test_all_data_sets_together_have_the_time_that_one_has(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = list[float]()
    monkeypatch.setattr("dist_train.doctor.read_ends", lambda paths, end: ends.append(end) or len(paths))
    data = Data.model_validate({"sets": {name: {"shards": str(shards)} for name in ("one", "other")}})
    assert read_shards(open_collection(data)).ends == 4
    assert len(ends) == 2 and ends[0] == ends[1]


def test_a_rank_that_does_not_come_ends_the_doctor_with_a_word(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    ended = warm.run("doctor", runs.TINY, f"data.shards={shards}", f"run.folder={tmp_path / 'run'}", "--wait", "2")
    assert ended.returncode == 1
    assert (
        "error: not all of 2 processes have come to 127.0.0.1:0 within 2 s: rank 1 has not; here are 0 on " in ended.stderr
        and "Traceback" not in ended.stderr
    )


def test_a_clock_that_is_ahead_is_measured_as_ahead() -> None:
    ended = warm.run(world=2, work=skewed)
    own, other = re.findall(r"ahead by (\S+) (\S+)", ended.stdout)
    assert own == ("0.0", "0.0"), ended.stderr
    assert abs(float(other[0]) - 5) <= float(other[1]) + 1e-4 and float(other[1]) < 1


def test_a_rank_that_hangs_at_the_network_is_given_up_and_the_rest_is_told(shards: Path, tmp_path: Path) -> None:
    words = ("doctor", runs.TINY, f"data.shards={shards}", f"run.folder={tmp_path / 'run'}", "--wait", "12")
    ended = warm.run(*words, world=2, work=deaf)
    assert ended.returncode != 0
    assert re.search(r"^shards +ok ", ended.stdout, re.MULTILINE) and re.search(r"^all-reduce +error ", ended.stdout, re.MULTILINE)
    assert "the ranks did not hear from each other for 6 s" in " ".join(ended.stdout.split())
    assert "verdict: not fit" in ended.stdout and not (tmp_path / "run").exists()


def test_a_question_without_an_answer_is_given_up_and_the_next_one_is_asked() -> None:
    one, held = Examination(torch.device("cpu")), threading.Event()
    started = time.monotonic()
    assert one.ask("shards", held.wait, limit=0.1) is None and one.ask("versions", lambda: 7) == 7
    held.set()
    assert time.monotonic() - started < 5
    assert one.failures == {"shards": "no answer within 0.1 s; see whether a disk or a server hangs there"}


def test_what_a_question_raises_is_told_without_passwords() -> None:
    one = Examination(torch.device("cpu"))

    def refuse() -> None:
        raise OSError("https://me:secret@server/shards: gone")

    assert one.ask("shards", refuse) is None
    assert one.failures == {"shards": "OSError: https://***@server/shards: gone"}


def test_a_run_folder_that_cannot_be_written_is_told() -> None:
    one = Examination(torch.device("cpu"))
    look_at_folder(Path("/proc/nowhere/run"), one)
    assert "run folder" in one.failures


@pytest.mark.parametrize("there", [True, False])
def test_the_token_in_the_run_folder_is_taken_away(tmp_path: Path, there: bool) -> None:
    one = Examination(torch.device("cpu"))
    look_at_folder(tmp_path if there else tmp_path / "some" / "run", one)
    assert not one.failures and not list(tmp_path.iterdir())


def test_bf16_multiplies_here_and_what_needs_a_gpu_is_refused_on_a_cpu() -> None:
    multiply(torch.device("cpu"), "bf16")
    for precision in ("fp16", "tf32"):
        with pytest.raises(ConfigError, match=f"{precision} needs a GPU"):
            multiply(torch.device("cpu"), precision)


def test_the_digest_of_the_sources_is_the_same_twice() -> None:
    assert sources_digest() == sources_digest()
