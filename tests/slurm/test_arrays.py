"""The promises of slurm/sweep.sh and slurm/build_shards.sh: an array of jobs does what one would do, task by task."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest
from cluster import ROOT, Cluster, Job
from photographs import contents
from runs import TINY, status

from dist_train.config import load_config
from shards.datasets import read_table
from shards.manifest import Label
from shards.plan import Settings, plan_build
from shards.writer import build

pytestmark = pytest.mark.timeout(300)
LIMIT = 250  # seconds for an array
OPINION = Label("pseudo-opinion", 0.0, 100.0, True)


@pytest.fixture(scope="module")
def table(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs' table without the split that it states."""
    path = tmp_path_factory.mktemp("table") / "scores.csv"
    path.write_text("".join(line.rpartition(",")[0] + "\n" for line in (photographs / "scores.csv").read_text().splitlines()))
    return path


def test_each_task_of_a_sweep_trains_its_split_with_its_seed_in_a_folder_of_its_own(
    cluster: Cluster, photographs: Path, table: Path, tmp_path: Path
) -> None:
    rounds = Settings(patch_size=64, patches=4, shard_bytes=2 << 20, rounds=2, ratio="60/40")
    build(plan_build(read_table(table, photographs / "images", "tiny", OPINION), rounds), tmp_path / "shards")
    words = [str(TINY), f"data.shards={tmp_path / 'shards'}", f"run.folder={tmp_path}/the sweep", "train.epochs=1"]
    *tasks, line = cluster("bash", "slurm/sweep.sh", *words, SEEDS="4 7").splitlines()
    folders = [tmp_path / "the sweep" / f"round-{split:02d}-seed-{seed}" for split in (1, 2) for seed in (4, 7)]
    assert tasks == [f"{task}: {folder}" for task, folder in enumerate(folders)]

    def submit(array: str) -> str:
        """Gives the shell the line that was printed, but for a part of the array."""
        log = tmp_path / "log-%A-%a"
        given = line.replace("sbatch --array=0-3", f"sbatch --parsable --output={shlex.quote(str(log))} --array={array}")
        job = Job(cluster, cluster("bash", "-c", given).strip(), log)
        job.wait_until_ended(limit=LIMIT)
        states[array] = sorted(job.fields("JobState"))
        return job.log()

    states: dict[str, list[str]] = {}
    log = submit("0,3")  # the first and the last, which differ in both
    assert states["0,3"] == ["COMPLETED"] * 2, log
    for folder in folders[::3]:
        resolved = load_config(folder / "config.yaml")
        assert status(folder)["status"] == "finished" and f"{resolved.data.split}-seed-{resolved.run.seed}" == folder.name
    assert "this run has finished" in submit("3") and states["3"] == ["COMPLETED"]
    assert "there is no task 4" in submit("4") and states["4"] == ["FAILED"]


def test_a_sweep_over_the_splits_of_several_data_sets_at_once_is_refused(tmp_path: Path) -> None:
    settings = ("data.sets={one: {shards: nowhere}, two: {shards: nowhere, split: round-02}}", f"run.folder={tmp_path}")
    words = ("env", "DIST_TRAIN_SITE=/dev/null", "SPLITS=round-01", "bash", "slurm/sweep.sh", str(TINY), *settings)
    refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and "data.sets gives each data set a split of its own" in refused.stderr and not refused.stdout


def test_a_build_of_which_one_task_runs_out_of_time_and_is_requeued_has_the_bytes_of_one_process(
    cluster: Cluster, photographs: Path, table: Path, tmp_path: Path
) -> None:
    # As many and as large patches as keep a task busy for some seconds; a shard is a few pictures.
    settings = Settings(patch_size=128, patches=50, shard_bytes=1 << 20, layout="patches", codec="zstd")
    whole = build(plan_build(read_table(table, photographs / "images", "tiny", OPINION), settings), tmp_path / "whole")
    source = ("--table", table, "--images", photographs / "images", "--name", "tiny", "--label", OPINION.name, "--range", "0", "100")
    cut = ("--size", "128", "--patches", "50", "--shard-mib", "1", "--layout", "patches", "--codec", "zstd", "--out", tmp_path / "out")
    job = cluster.submit(tmp_path / "log-%A-%a", "--array=1-3", ROOT / "slurm/build_shards.sh", *source, *cut)
    end = time.monotonic() + LIMIT
    while not (tmp_path / "out" / "shard-000002.tar").exists():  # the first of share 3/3
        assert time.monotonic() < end, job.log()
        time.sleep(0.02)
    cluster("scancel", "--batch", "--signal=USR1", f"{job.number}_3")  # as if its time were up: it requeues itself, and none of the others
    assert len(list((tmp_path / "out").glob("shard-*.tar"))) < len(list(whole.folder.glob("shard-*.tar"))), "too late: all shards are there"
    job.wait_until_ended(limit=LIMIT)
    assert sorted(job.fields("JobState")) == ["COMPLETED"] * 3, job.log()
    assert sorted(job.fields("Restarts")) == ["0", "0", "1"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
