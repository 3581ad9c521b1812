"""One run that is struck by faults: the same command, given again until the run has ended, with a hard limit to every wait.

An attempt is one start of the command. Its processes are found by a mark in their environment, so that none is overlooked whose
parent was killed, and its output goes to a file. An attempt that does not end in time is a failure of the test, told with what
every thread of every process was doing (SIGABRT makes Python's faulthandler say it), and is killed, process by process.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import runs

EPOCH = 5  # steps of an epoch of the tests' shards
SETTINGS = ("model.dropout=0.1", "stop.patience=null", "save.every_steps=1")
PROMPTLY = 30  # seconds within which all processes are gone once one of them is, or has failed; the README promises it
A_RUN = 150  # seconds for a start of the command that nothing disturbs; it takes 15 on two idle cores
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "20"))  # random moments of the long tests
BROKEN = (str(Path(__file__).with_name("broken.py")),)  # started instead of `-m dist_train`
MARK = "FAULTS_ATTEMPT"


class Attempt:
    """One start of the command and all its processes."""

    def __init__(self, command: Sequence[str], world: int, output: Path, environment: Mapping[str, str]) -> None:
        self._world, self._mark, self._output = world, secrets.token_hex(8), output
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", MARK: self._mark, **environment}
        with output.open("w") as file:
            self._first = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables, start_new_session=True)

    def processes(self) -> list[psutil.Process]:
        """All that live, whoever their parent is now."""
        found = []
        self._first.poll()  # so that it is no zombie
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, as far as they have been started, in the order of their ranks."""
        if self._world == 1:
            return [process for process in self.processes() if process.pid == self._first.pid]
        found = {}
        for process in self.processes():
            with suppress(psutil.Error):
                if process.ppid() == self._first.pid and "RANK" in process.environ():
                    found[int(process.environ()["RANK"])] = process
        return [found[rank] for rank in sorted(found)]

    def launcher(self) -> list[psutil.Process]:
        """torchrun, where there are several ranks."""
        return [process for process in self.processes() if process.pid == self._first.pid and self._world > 1]

    def workers(self) -> list[psutil.Process]:
        """The loader workers of all ranks."""
        ranks = {rank.pid for rank in self.ranks()}
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if process.ppid() in ranks:
                    found.append(process)
        return found

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def last_words(self) -> str:
        """The last line that a person sees; frames of a launcher do not count."""
        return [line for line in self.said().splitlines() if line.strip(" =")][-1]

    def wait_until(self, there: Callable[[], bool], what: str, limit: float = A_RUN) -> bool:
        """True once it is there; False when the attempt ended before that."""
        end = time.monotonic() + limit
        while not there():
            if self._first.poll() is not None:
                return there()
            if time.monotonic() > end:
                self._tell_hang(f"waited {limit} s for {what}")
            time.sleep(0.02)
        return True

    def wait(self, limit: float = A_RUN) -> int:
        """The exit status of the command once all its processes are gone."""
        end = time.monotonic() + limit
        while self.processes():
            if time.monotonic() > end:
                self._tell_hang(f"did not end in {limit} s")
            time.sleep(0.1)
        return self._first.wait()

    def kill(self) -> None:
        """SIGKILL to all."""
        while left := self.processes():
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            self._first.poll()
            time.sleep(0.02)

    def _tell_hang(self, why: str) -> None:
        for number in (signal.SIGABRT, signal.SIGCONT):
            for process in self.processes():
                with suppress(psutil.Error):
                    process.send_signal(number)
        time.sleep(3)
        self.kill()
        pytest.fail(f"{why}\n{self.said()}", pytrace=False)


class Trial:
    """A run folder, and the command that is given again and again."""

    def __init__(
        self,
        world: int,
        folder: Path,
        shards: Path,
        epochs: int = 4,
        settings: Sequence[str] = (),
        program: Sequence[str] = ("-m", "dist_train"),
    ) -> None:
        self.world, self.folder, self.epochs = world, folder, epochs
        self.attempts: list[Attempt] = []
        self._command = runs.words(world, folder, shards, *SETTINGS, f"train.epochs={epochs}", *settings, program=program)

    def start(self, **environment: str) -> Attempt:
        """Gives the command, when all of the attempt before is gone."""
        assert not any(attempt.processes() for attempt in self.attempts)
        output = self.folder.with_name(f"{self.folder.name}-{len(self.attempts)}.txt")
        self.attempts.append(Attempt(self._command, self.world, output, environment))
        return self.attempts[-1]

    @property
    def last_step(self) -> int:
        return EPOCH * self.epochs

    def steps(self) -> int:
        """How many steps the journal tells of."""
        return len(runs.records(self.folder, "step"))

    def wait_for_step(self, attempt: Attempt, step: int) -> bool:
        """True once the journal tells of so many steps; the last one also wants its verdict. False when the attempt ended before."""
        epochs = self.epochs if step == self.last_step else 0
        return attempt.wait_until(lambda: self.steps() >= step and len(runs.records(self.folder, "epoch")) >= epochs, f"step {step}")

    def finish(self) -> Attempt:
        """The same command once more, which must now run to the end."""
        attempt = self.start()
        assert attempt.wait() == 0, attempt.said()
        return attempt

    def assert_failed(self, attempt: Attempt, *words: str, within: float = PROMPTLY) -> None:
        """That the attempt ends in time, that its last line holds these words, and that status.json says so too."""
        assert attempt.wait(within) != 0, attempt.said()
        told = runs.status(self.folder)
        assert told["status"] == "failed", f"{told['status']}: {told['reason']}\n{attempt.said()}"
        for word in words:
            assert word in attempt.last_words(), attempt.said()
            assert word in told["reason"], told["reason"]

    def assert_result_of(self, unbroken: Trial) -> None:
        """That this run has ended as the unbroken one: its weights and scores to the last bit, its steps once each."""
        assert runs.status(self.folder)["status"] == "finished"
        assert [record["step"] for record in runs.records(self.folder, "step")] == list(range(1, self.last_step + 1))
        assert runs.records(self.folder, "epoch") == runs.records(unbroken.folder, "epoch")
        weights = f"checkpoints/step-{self.last_step:08d}/model.safetensors"
        for name in (weights, "best/model.safetensors", "scores-val.csv", "scores-test.csv"):
            assert (self.folder / name).read_bytes() == (unbroken.folder / name).read_bytes(), name
        mine, other = (runs.figures(trial.folder) for trial in (self, unbroken))
        assert mine == other

    def kill(self) -> None:
        """Leaves no process behind."""
        for attempt in self.attempts:
            attempt.kill()
