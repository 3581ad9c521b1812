"""A Slurm cluster for the tests, of the machines that `mini-slurm` makes, and the jobs on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINI_SLURM = Path(__file__).parent / "mini-slurm"
SECRET = "a-secret-of-mine"  # is in the environment of every job, and must be in no log
LISTENING = """
import psutil
for process in psutil.process_iter(["cmdline"]):
    words = process.info["cmdline"]
    if "dist_train" in words and "python" in words[0]:  # srun has the word, too
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                print(connection.laddr.ip)
"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """A controller and nodes n1, n2, ... that see the disk of this machine, two pretended GPUs and sixteen pretended cores each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {"MINI_SLURM_DIR": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        self._environment |= {"MINI_SLURM_CPUS": "16", "HF_TOKEN": SECRET}
        self._environment["DIST_TRAIN_SITE"] = "/dev/null"  # that of the person who runs the tests has nothing to do with them

    def __call__(self, *command: str | Path, limit: float = 60, codes: Sequence[int] = (0,), **variables: str) -> str:
        """What a command says that must succeed, such as sbatch, or end with one of these codes."""
        environment = self._environment | variables
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
        assert done.returncode in codes, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def machine(self, *arguments: str, limit: float = 90, codes: Sequence[int] = (0,)) -> str:
        """A command of mini-slurm."""
        return self(MINI_SLURM, *arguments, limit=limit, codes=codes)

    def listening(self, node: str) -> list[str]:
        """The addresses at which launchers and ranks of trainings listen on a machine, each once; 0.0.0.0 and :: are any that it has."""
        return sorted(set(self.machine("exec", node, sys.executable, "-c", LISTENING).split()))

    def start(self, node: str, *command: str | Path) -> subprocess.Popen[str]:
        """Starts a command on a machine, outside Slurm."""
        words = [str(MINI_SLURM), "exec", node, *map(str, command)]
        return subprocess.Popen(words, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def submit(self, log: Path, *arguments: str | Path, **variables: str) -> Job:
        """sbatch, with the environment variables that a person would set before it."""
        return Job(self, self("sbatch", "--parsable", "--output", log, *arguments, **variables).strip(), log)


class Job:
    """What Slurm says of a job, or of an array job as a whole."""

    def __init__(self, cluster: Cluster, number: str, log: Path) -> None:
        self.cluster, self.number, self._log = cluster, number, log

    def fields(self, name: str) -> list[str]:
        """A field of `scontrol show job`, of each task of an array."""
        return re.findall(rf"\b{name}=(\S+)", self.cluster("scontrol", "show", "job", self.number))

    def restarts(self) -> int:
        return int(self.fields("Restarts")[0])

    def log(self) -> str:
        """What the job has written so far; of an array, the tasks' logs one after the other."""
        name = re.sub("%.", "*", self._log.name)
        return "\n".join(path.read_text() for path in sorted(self._log.parent.glob(name)))

    def wait(self, *states: str, limit: float) -> list[str]:
        """Returns the states once all tasks are in one of these; tells the log when that takes too long, or they ended otherwise."""
        end = time.monotonic() + limit
        while not {*(found := self.fields("JobState"))} <= {*states}:
            assert time.monotonic() < end, f"waited {limit} s for {states}: {found}\n{self.log()}"
            assert not {*found} <= {*ENDED}, f"not {states} but {found}\n{self.log()}"
            time.sleep(0.2)
        return found

    def wait_until_ended(self, limit: float) -> list[str]:
        found = self.wait(*ENDED, limit=limit)
        assert SECRET not in self.log()
        return found


@contextmanager
def running_cluster(nodes: int) -> Iterator[Cluster]:
    """A cluster for as long as the caller wants it.

    A process of its own ends it: as soon as the caller closes its pipe, or is gone, however that came about.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path, for the sockets
    cluster = Cluster(folder)
    ending = ["bash", "-c", 'read -r; exec "$0" down --purge', str(MINI_SLURM)]
    guard = subprocess.Popen(ending, stdin=subprocess.PIPE, env=cluster._environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        cluster.machine("up", str(nodes))
        yield cluster
    finally:
        assert guard.stdin
        guard.stdin.close()
        assert guard.wait(timeout=60) == 0
        shutil.rmtree(folder, ignore_errors=True)


def traces_of(folder: Path) -> Sequence[str]:
    """Processes, mounts and network devices that a cluster in `folder` has on this machine."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if path.name != str(os.getpid()) and str(folder).encode() in words + variables:
            processes.append(f"process {path.name}: {words.decode(errors='replace')}")
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    devices = [f"network device {name}" for name in os.listdir("/sys/class/net") if name == "bridge" or name.startswith("to-n")]
    return [*processes, *mounts, *devices, *([f"folder {folder}"] if folder.exists() else [])]
