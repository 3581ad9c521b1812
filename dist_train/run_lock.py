"""One job at a time writes into a run folder: the file `lock` says which, and another job is refused with that name.

Right on shared file systems too, where locks of the kernel cannot be trusted: whoever makes the file by a hard link has it. While
a job lives, its first rank adds one to a counter in the file, in place, every few seconds. A lock is stale when

  - it is of an earlier turn of this very job, by Slurm's restart count or torchelastic's;
  - it is of this machine, and its process is gone;
  - it is of another machine, or of one whose processes we cannot see, and its counter stands still while we watch it.

No clock is compared with another. To take over a stale lock one must first hold `.lock-after-TOKEN`, a lock of the same kind on
that very change, so of several that come at once one wins. An owner that was asleep for so long that it has lost its lock finds
that out at its next beat, and before it writes: a checkpoint, or a line of the journal. It never touches a lock that is not its own.

`report` and `evaluate` take no lock: each writes whole files of its own beside a run's, and reads only whole ones.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from dist_train import ranks
from dist_train.errors import ConfigError, TrainingError
from dist_train.heartbeat import doing
from shards.whole_files import write_once

NAME = "lock"
BEAT = 3.0  # seconds between two beats of an owner
POLL = 0.5  # seconds between two looks at the counter of another
LOOKS = 30  # at a counter that stands still before its owner counts as gone: 15 seconds, five beats
_COUNTER = 12  # digits


class Owner(BaseModel):
    """Who holds a lock: what tells this process from all others, and what people need to find it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str = Field(pattern="^[0-9a-f]{16}$")  # it becomes part of a file name
    host: str
    user: str
    since: str  # by its own clock, for people only
    pid: int
    started: str | None  # of the process: ticks since its machine's start
    machine: str | None  # the start of the machine and the table of processes in which `pid` counts; None where there is no /proc
    turns: Mapping[str, int]  # jobs that start again under the same name, and the how-manieth start this is

    @classmethod
    def of_this_process(cls) -> Owner:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container without a table of users
            user = str(os.getuid())
        since, pid = datetime.now().astimezone().isoformat(timespec="seconds"), os.getpid()
        return cls(
            token=secrets.token_hex(8),
            host=os.uname().nodename,
            user=user,
            since=since,
            pid=pid,
            started=process_start(pid),
            machine=this_machine(),
            turns=turns_of(os.environ),
        )

    def __str__(self) -> str:
        jobs = "".join(f", {job}" for job in self.turns)
        return f"process {self.pid} on {self.host} (user {self.user}{jobs}, since {self.since})"


def turns_of(environment: Mapping[str, str]) -> dict[str, int]:
    """The jobs that this process belongs to and that start again under the same name: which start is this, from 0."""
    turns = {}
    if job := environment.get("SLURM_JOB_ID"):
        cluster = environment.get("SLURM_CLUSTER_NAME")
        turns[f"Slurm job {job}" + (f" on {cluster}" if cluster else "")] = int(environment.get("SLURM_RESTART_COUNT") or 0)
    run = environment.get("TORCHELASTIC_RUN_ID", "none")
    if run != "none":  # what torchrun calls every run that was given no name
        turns[f"torchelastic run {run}"] = int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
    return turns


def this_machine() -> str | None:
    """Where a process number means one process: this start of this machine, in this table of processes; None without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{os.uname().nodename} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def process_start(pid: int) -> str | None:
    """When the process `pid` of this machine began, in ticks since the machine did; None when there is none that still runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie writes no more


def why_gone(owner: Owner, me: Owner, start_of: Callable[[int], str | None] = process_start) -> str | None:
    """Why `owner` is certainly not writing any more; None when it may be."""
    for job, turn in me.turns.items():
        if owner.turns.get(job, turn) < turn:
            return f"it is of start {owner.turns[job]} of {job}, and this is start {turn}"
    if owner.machine is not None and owner.machine == me.machine and start_of(owner.pid) != owner.started:
        return "that process is gone"
    return None


class RunLock:
    """The lock of one run folder, for one job: its first rank takes it and beats, the others know whose it is."""

    def __init__(self, folder: Path, say: Callable[[str], None] | None = None) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._say = say or partial(print, flush=True)
        self._owner = Owner.of_this_process()
        self._record = self._owner.model_dump_json().encode() + b"\n"
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._lost: str | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has the folder for this job while the block runs. A collective. Raises ConfigError on all ranks when another job has it."""
        with doing("taking the lock of the run folder"):
            self._owner = ranks.first_does(self.take)
        try:
            yield
        finally:
            self.release()

    def take(self) -> Owner:
        """Makes the lock ours, or raises ConfigError with the name of who has it. A stale one is taken over, aloud.

        Waits some seconds where only its counter can tell whether another machine's job lives.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._seize(self._path)
        for void in self._folder.glob(self._claim_on("*").name):  # of somebody who was killed, or who will find it gone and look again
            void.unlink(missing_ok=True)
        self._beats.start()
        return self._owner

    def is_ours(self) -> bool:
        """Whether the file says so now; on any rank."""
        return self._is_ours(self._path)

    def refuse_if_lost(self) -> None:
        """Raises TrainingError on the first rank when the lock is not ours any more, as the file says now."""
        if self._beats.is_alive():
            self._look()
        self.refuse_if_known_lost()

    def refuse_if_known_lost(self) -> None:
        """The same, from what the last beat saw: reads nothing."""
        if self._lost is not None:
            raise TrainingError(
                f"{self._folder}: {self._lost}; this job was taken for dead, perhaps because it was suspended, and ends without "
                f"writing any more. What it has saved is what the other one goes on from"
            )

    def release(self) -> None:
        """Lets go, if it is ours. Never raises: what stays behind is stale as soon as this process has ended."""
        if not self._beats.is_alive():
            return
        self._ended.set()
        self._beats.join()
        with suppress(OSError, ConfigError):  # a full disk; somebody who is taking it over
            claim = self._claim_on(self._owner.token)
            self._seize(claim)
            if self._is_ours(self._path):
                self._path.unlink()
            claim.unlink()

    def _seize(self, path: Path) -> None:
        while True:
            write_once(path, self._record + b"0" * _COUNTER)
            found = _content(path)
            if found is None:
                continue  # let go at this very moment
            owner, token = _owner(found)
            if token == self._owner.token:
                return
            if not self._is_stale(path, found, owner):
                continue
            claim = self._claim_on(token)
            self._seize(claim)
            now = _content(path)
            if now is not None and _owner(now)[1] == token:  # nobody changes it from this to something else while we hold the claim
                with suppress(FileNotFoundError):  # we slept, and were taken for dead
                    claim.replace(path)
            else:
                claim.unlink(missing_ok=True)

    def _is_stale(self, path: Path, found: bytes, owner: Owner | None) -> bool:
        """Whether its owner is gone; False when it is another's by now. Raises ConfigError when its owner lives."""
        name = "somebody whose name cannot be read" if owner is None else str(owner)
        if owner is not None:
            if why := why_gone(owner, self._owner):
                self._say(f"{path}: is left over from {name}; taking over, because {why}")
                return True
            if owner.machine is not None and owner.machine == self._owner.machine:
                raise self._refusal(name)
        self._say(f"{path}: is of {name}; watching for {POLL * LOOKS:.0f} s whether that job lives, which cannot be seen from this machine")
        for _ in range(LOOKS):  # looks, not seconds: if we are suspended ourselves, the other gets its time again
            time.sleep(POLL)
            now = _content(path)
            if now is None or _owner(now)[1] != _owner(found)[1]:
                return False
            if now != found:
                raise self._refusal(name)
        self._say(f"{path}: taking over, because its counter stood still")
        return True

    def _refusal(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self._folder}: another job is writing here: {name}; wait until it has ended, end it (touch {self._folder / 'stop'}), "
            f"or choose another run.folder"
        )

    def _beat(self) -> None:
        beat = 0
        while self._lost is None and not self._ended.wait(BEAT):
            beat += 1
            self._look(beat)

    def _look(self, beat: int | None = None) -> None:
        """Notes it when the file is not ours any more; otherwise writes the beat, in place: into our file, whatever its name is by now."""
        try:
            with self._path.open("r+b") as file:
                content = file.read()
                owner, token = _owner(content)
                if token != self._owner.token:
                    self._lost = f"has been taken over by {owner or 'somebody whose name cannot be read'}"
                elif beat is not None:
                    file.seek(len(self._record))
                    file.write(b"%0*d" % (_COUNTER, beat))
        except FileNotFoundError:
            self._lost = f"the file {NAME} is gone"
        except OSError:  # a server that does not answer just now: the next beat will tell
            pass

    def _is_ours(self, path: Path) -> bool:
        content = _content(path)
        return content is not None and _owner(content)[1] == self._owner.token

    def _claim_on(self, token: str) -> Path:
        return self._folder / f".{NAME}-after-{token}"


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _owner(content: bytes) -> tuple[Owner | None, str]:
    """Whose a lock is, and its token; of one that nobody can read, None and a token made from its bytes."""
    try:
        owner = Owner.model_validate_json(content.partition(b"\n")[0])
        return owner, owner.token
    except ValueError:
        return None, hashlib.sha256(content).hexdigest()[:16]
