"""This node's cache: files from afar under the name of their SHA-256, fetched once per node and bounded in bytes.

    ~/.cache/dist_train/
      <sha256>                a whole file; whoever reads it holds a shared lock on it, and then nobody evicts it
      <sha256>.<bytes>.part   a file on its way; whoever fetches it holds the lock on it, and the others wait
      lock                    held for a moment by whoever counts the bytes and evicts

A hash is never stale and serves every data set and every run that holds the same bytes. The locks are the kernel's (flock):
those of a killed process free themselves. DIST_TRAIN_CACHE names another folder, best on a disk of the node's own, and
DIST_TRAIN_CACHE_GIB another bound.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shards.manifest import ShardError

DEFAULT_GIB = 100.0
KEEP_FREE = 1 << 30  # bytes; a full disk would stop everybody's jobs, not only this one
LOOK_AGAIN = 0.02  # seconds between two looks at a lock that another process holds


def is_full(error: Exception) -> bool:
    """Whether the disk has no room left, or this user's share of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Cache:
    """A folder of whole files that never holds more than `limit` bytes of shards."""

    folder: Path
    limit: int

    @staticmethod
    def of_this_node() -> Cache:
        """The cache that the environment names. Raises ShardError when its bound is no number."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dist_train"
        try:
            folder = Path(os.environ.get("DIST_TRAIN_CACHE") or home).expanduser()
        except RuntimeError as error:  # in a container a user may have none
            raise ShardError("this user has no home folder for a cache; set DIST_TRAIN_CACHE to a folder on a local disk") from error
        text = os.environ.get("DIST_TRAIN_CACHE_GIB") or str(DEFAULT_GIB)
        try:
            return Cache(folder, int(float(text) * 2**30))
        except (ValueError, OverflowError):
            raise ShardError(f"DIST_TRAIN_CACHE_GIB={text} is no number of GiB; set it to one, such as {DEFAULT_GIB:g}") from None

    def open(
        self, sha256: str, size: int, fetch: Callable[[Path], None], needed: Collection[str] = (), required: bool = False
    ) -> int | None:
        """A descriptor of the file with that hash, to be closed by the caller; None when there is no room for it.

        A missing file is fetched by one process of this node while the others wait: `fetch` writes it to the path it is given
        and answers for its hash. Room is made by evicting what was not used for longest, but never a file that is open
        somewhere, nor one whose hash is in `needed`. A `required` file, whose size nobody knows before it is there, is fetched even
        beyond the bound, and then others make room for it, in the end those in `needed`, too; on a full disk others do so first.
        Raises ShardError when the folder cannot be written, and whatever `fetch` raises.
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ShardError(f"'{sha256}' is no SHA-256, so nothing can be kept under that name; upload the folder again")
        with self._usable():
            return self._open(sha256, size, fetch, needed, required)

    def drop(self, sha256: str) -> None:
        """Forgets a copy that was found to be damaged; readers that have it open keep their own view of it."""
        (self.folder / sha256).unlink(missing_ok=True)

    def room(self) -> int:
        """Bytes that one data set could take here, were all others evicted."""
        with self._usable():
            held = sum(stat.st_size for stat, _ in self._files())
            return max(0, min(self.limit, held + shutil.disk_usage(self.folder).free - KEEP_FREE))

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise ShardError(
                f"{self.folder}: this node's cache cannot be used ({error.strerror}); "
                f"set DIST_TRAIN_CACHE to a folder on a local disk with room that you may write to"
            ) from error

    def _open(self, sha256: str, size: int, fetch: Callable[[Path], None], needed: Collection[str], required: bool) -> int | None:
        path, part, evicted = self.folder / sha256, self.folder / f"{sha256}.{size}.part", False
        while (descriptor := _locked(path)) is None:
            with _alone_with(part) as own:
                if path.exists():  # another process fetched it while this one waited
                    part.unlink(missing_ok=True)
                    continue
                try:
                    if not required and not self._make_room(part, size, needed):
                        return None
                    fetch(part)
                    part.replace(path)
                    if required:  # locked still, so that it does not make room for itself
                        self._make_room(part, 0, needed, needed_too=True)
                except OSError as error:
                    if not is_full(error) or evicted:
                        raise
                    if not required:
                        return None  # others have filled the disk in the meantime
                    self._make_room(part, 0, needed, at_least=KEEP_FREE)
                    evicted = True  # and once more
                finally:
                    if _is_still(part, own):  # where there was no room, it may be another process's by now
                        part.unlink()
        return descriptor

    def _make_room(self, part: Path, size: int, needed: Collection[str], at_least: int = 0, needed_too: bool = False) -> bool:
        """Evicts until `size` bytes fit, and no fewer than `at_least` bytes: how full a user's share of a disk is, nobody can ask.

        Files in `needed` go only with `needed_too`, and after all others: a shard can be read by ranges, a table or an index cannot.
        False when that cannot be, and then `part` no longer stands for them.
        """
        with _alone_with(self.folder / "lock"):
            coming = awaited = 0  # bytes that other processes are fetching now, and how many of them are not written yet
            for other in self.folder.glob("*.part"):
                if other != part and (written := _bytes_of_living(other)) is not None:
                    whole = int(other.name.split(".")[1])
                    coming, awaited = coming + max(whole, written), awaited + max(0, whole - written)
            files = sorted(self._files(), key=lambda file: (file[1].name in needed, file[0].st_mtime_ns))
            free = shutil.disk_usage(self.folder).free - KEEP_FREE - awaited
            excess = max(sum(stat.st_size for stat, _ in files) + coming + size - self.limit, size - free, at_least)
            for stat, path in files:
                if excess > 0 and (needed_too or path.name not in needed) and _evicted(path):
                    excess -= stat.st_size
            if excess > 0:
                part.unlink(missing_ok=True)
            return excess <= 0

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        for path in self.folder.iterdir():
            if len(path.name) == 64:
                with suppress(FileNotFoundError):  # evicted, or found to be damaged, by another process since it was listed
                    yield path.stat(), path


def _locked(path: Path) -> int | None:
    """A descriptor of a whole file that nobody evicts while it is open; None when the file is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not _is_still(path, descriptor):  # evicted between these two lines
        os.close(descriptor)
        return None
    with suppress(PermissionError):  # in a cache that users share it may be another's file
        os.utime(descriptor)  # now it is the one used last
    return descriptor


@contextmanager
def _alone_with(path: Path) -> Iterator[int]:
    """Waits until no other process is in here with the same `path`, which is made when it is not there; its descriptor.

    It looks again and again, since the kernel would let it wait for a file that has long got its final name and whose readers
    hold it for as long as they run.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while _is_still(path, descriptor):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(LOOK_AGAIN)
                    continue
                if _is_still(path, descriptor):
                    yield descriptor
                    return
        finally:
            os.close(descriptor)


def _bytes_of_living(part: Path) -> int | None:
    """How much of `part` is written; None when it is finished, or when its process was killed, and then it is removed."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(part, descriptor):
            part.unlink()
        return None
    except BlockingIOError:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _evicted(path: Path) -> bool:
    """Removes a whole file, unless it is in use; whether it did."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
