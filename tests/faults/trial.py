"""One run that is struck by faults: the same command, given again until the run has ended, with a hard limit to every wait.

An attempt is one start of the command: by torchrun, as a user types it, or of the ranks alone, forked from a warm process, where no
launcher matters. Its processes are found by a mark in their environment or by the session of a rank, so that none is overlooked
whose parent was killed, and its output goes to a file. An attempt that does not end in time is a failure of the test, told with what
every thread of every process was doing (SIGABRT makes Python's faulthandler say it), and is killed, process by process.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest
import runs
import warm
from broken import Fault, main

EPOCH = 5  # steps of an epoch of the tests' shards
SETTINGS = ("model.dropout=0.1", "stop.patience=null", "save.every_steps=1")
PROMPTLY = 30  # seconds within which all processes are gone once one of them is, or has failed; the README promises it
A_RUN = 150  # seconds for a start of the command, and four epochs, that nothing disturbs; it takes 15 on two idle cores
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "20"))  # the kills in a row of the longest test; every other fault strikes in proportion
MARK = "FAULTS_ATTEMPT"
# what ranks say that no launcher ends, once the one is gone that has told the cause
_LOST_THE_CAUSE = re.compile(r"rank \d+ ends: (another rank has failed|the launcher, or)|\[rank\d+\]:\[W.*TCPStore")


def times(one_in: int) -> int:
    """How often a fault strikes that is `one_in` times as rare as the kills: twice at least."""
    return max(2, ROUNDS // one_in)


def turns(one_in: int) -> pytest.MarkDecorator:
    """The test so often, each time at moments of its own; on one rank and on two by turns, where it takes `world`."""
    return pytest.mark.parametrize("turn", range(times(one_in)))


def flip_a_bit(path: Path, byte: int, dice: random.Random) -> None:
    """Changes one bit of a byte in place, whoever reads the file meanwhile."""
    with path.open("r+b") as file:
        file.seek(byte)
        (found,) = file.read(1)
        file.seek(byte)
        file.write(bytes([found ^ 1 << dice.randrange(8)]))


class Attempt:
    """One start of the command and all its processes. `started` is the launcher, or else the ranks."""

    def __init__(self, started: Sequence[subprocess.Popen[bytes] | ForkServerProcess], launched: bool, mark: str, output: Path) -> None:
        self._started, self._launched, self._mark, self._output = started, launched, mark, output
        self._first = {process.pid for process in started}

    def processes(self) -> list[psutil.Process]:
        """All that live, whoever their parent is now."""
        self._codes()  # so that none is a zombie
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                own = self._first & {process.pid, os.getsid(process.pid)} or (self._mark and process.environ().get(MARK) == self._mark)
                if own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, as far as they have been started, in the order of their ranks."""
        if not self._launched:
            return self._living()
        found = {}
        for process in self.processes():
            with suppress(psutil.Error):
                if process.ppid() in self._first and "RANK" in process.environ():
                    found[int(process.environ()["RANK"])] = process
        return [found[rank] for rank in sorted(found)]

    def launcher(self) -> list[psutil.Process]:
        """torchrun, where it is one that started the ranks."""
        return self._living() if self._launched else []

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
        """The last line that a person sees. A launcher's frames do not count; nor, where there is none, what the others say in the end."""
        lines = [line for line in self.said().splitlines() if line.strip(" =")]
        return [*takewhile(lambda line: not _LOST_THE_CAUSE.match(line), lines)][-1]

    def wait_until(self, there: Callable[[], bool], what: str, limit: float = A_RUN, every: float = 0.02) -> bool:
        """True once it is there; False when the attempt ended before that."""
        end = time.monotonic() + limit
        while not there():
            if None not in self._codes():
                return there()
            if time.monotonic() > end:
                self._tell_hang(f"waited {limit} s for {what}")
            time.sleep(every)
        return True

    def wait(self, limit: float = A_RUN) -> int:
        """The worst exit status of what was started, once all processes are gone."""
        end = time.monotonic() + limit
        while self.processes() or None in self._codes():
            if time.monotonic() > end:
                self._tell_hang(f"did not end in {limit} s")
            time.sleep(0.1)
        return max(abs(code) for code in self._codes() if code is not None)

    def kill(self) -> None:
        """SIGKILL to all."""
        while left := self.processes():
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)

    def _codes(self) -> list[int | None]:
        return [process.poll() if isinstance(process, subprocess.Popen) else process.exitcode for process in self._started]

    def _living(self) -> list[psutil.Process]:
        found = []
        for process, code in zip(self._started, self._codes(), strict=True):
            with suppress(psutil.NoSuchProcess):
                if code is None:
                    found.append(psutil.Process(process.pid))
        return found

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

    def __init__(self, world: int, folder: Path, shards: Path, epochs: int = 4, settings: Sequence[str] = ()) -> None:
        self.world, self.folder, self.epochs = world, folder, epochs
        self.attempts: list[Attempt] = []
        settings = (*SETTINGS, f"train.epochs={epochs}", *settings)
        self._typed, self._typed_alone = (runs.words(number, folder, shards, *settings) for number in (world, 1))

    def start(self, *faults: Fault, settings: Sequence[str] = ()) -> Attempt:
        """Gives the command, with these faults in it, to ranks that nobody has launched: in warm processes."""
        output = self._next_output()
        words = [*self._typed_alone[3:], *settings]  # without `python -m dist_train`
        return self._began(warm.start(words, self.world, (output, output), partial(main, faults)), False, "", output)

    def launch(self, **environment: str) -> Attempt:
        """Gives the command as a user types it: to torchrun where there are several ranks."""
        return self._open([environment], self._typed, self.world > 1)

    def launch_by_hand(self, environments: Sequence[Mapping[str, str]]) -> Attempt:
        """The same without torchrun: each rank by itself, in an environment of its own."""
        own = warm.environments(self.world)
        return self._open([mine | to_me for mine, to_me in zip(own, environments, strict=True)], self._typed_alone, False)

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
        attempt = self.start(settings=["run.timeout_minutes=10"])  # however little the attempts before had, to be over soon
        assert attempt.wait(A_RUN * max(1, self.epochs / 4)) == 0, attempt.said()
        return attempt

    def assert_failed(self, attempt: Attempt, *words: str, within: float = PROMPTLY, status: str = "failed") -> None:
        """That the attempt ends in time, that its last line holds these words, and that status.json says so too."""
        assert attempt.wait(within) != 0, attempt.said()
        told = runs.status(self.folder)
        assert told["status"] == status, f"{told['status']}: {told['reason']}\n{attempt.said()}"
        for word in words:
            assert word in attempt.last_words(), attempt.said()
            assert word in told["reason"], told["reason"]

    def assert_result_of(self, unbroken: Trial) -> None:
        """That this run has ended as the unbroken one: its weights and scores to the last bit, its steps once each, and nothing half."""
        assert runs.status(self.folder)["status"] == "finished"
        assert [record["step"] for record in runs.records(self.folder, "step")] == list(range(1, self.last_step + 1))
        assert runs.records(self.folder, "epoch") == runs.records(unbroken.folder, "epoch")
        self.assert_weights_of(unbroken)
        mine, other = (runs.figures(trial.folder) for trial in (self, unbroken))
        assert mine == other
        assert not [*self.folder.rglob(".*")], "what a killed attempt had begun to write stays for ever"

    def assert_weights_of(self, other: Trial) -> None:
        """That this run has ended with the weights, the moments and the scores of another, to the last bit."""
        last = f"checkpoints/step-{self.last_step:08d}"
        for name in (
            f"{last}/model.safetensors",
            f"{last}/optimizer.safetensors",
            "best/model.safetensors",
            "scores-val.csv",
            "scores-test.csv",
        ):
            assert (self.folder / name).read_bytes() == (other.folder / name).read_bytes(), name

    def kill(self) -> None:
        """Leaves no process behind."""
        for attempt in self.attempts:
            attempt.kill()

    def _open(self, environments: Sequence[Mapping[str, str]], words: Sequence[str], launched: bool) -> Attempt:
        output, mark, started = self._next_output(), secrets.token_hex(8), []
        of_all = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", MARK: mark}
        with output.open("a") as file:
            for own in environments:
                started.append(subprocess.Popen(words, stdout=file, stderr=file, env=of_all | own, start_new_session=True))
        return self._began(started, launched, mark, output)

    def _next_output(self) -> Path:
        """The file that the next attempt writes to, when all of the one before is gone."""
        assert not any(attempt.processes() for attempt in self.attempts[-1:])
        output = self.folder.with_name(f"{self.folder.name}-{len(self.attempts)}.txt")
        output.touch()
        return output

    def _began(self, started: Sequence[subprocess.Popen[bytes] | ForkServerProcess], launched: bool, mark: str, output: Path) -> Attempt:
        self.attempts.append(Attempt(started, launched, mark, output))
        return self.attempts[-1]
