"""A shard folder under http(s):// or s3://: its files come whole into this node's cache, or by byte ranges where they do not fit.

Every request ends: it has a timeout, is tried again with growing pauses where that can help, and then becomes a ShardError.
Whole files are verified by the SHA-256 that the manifest states before they get their name, ranges by the checksums of the
index. A URL may hold a password or a signature: no message shows it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec
from fsspec import AbstractFileSystem

from shards.cache import Cache, is_full
from shards.manifest import ShardError, file_sha256

SCHEMES = ("http", "https", "s3")
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1.0, 3.0, 9.0)  # seconds before the second, third and fourth try
_TRY_AGAIN = (408, 425, 429)  # of the 4xx answers, those that say "later"; a 5xx always does
_WHO_ASKS = {
    "http": "name user and password in ~/.netrc",
    "https": "name user and password in ~/.netrc",
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket set FSSPEC_S3_ANON=true",
}

Answer = TypeVar("Answer")


def redacted(text: str) -> str:
    """`text` with every user, password and query of a URL left out."""
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\")]+", r"\1?***", text)


class _NotTheFile(Exception):
    """The server answered, but with other bytes than the manifest says."""


class RemoteFolder:
    """The files of one shard folder under a URL, for one process; forked children may go on using it."""

    def __init__(self, url: str) -> None:
        """Sends no request. Raises ShardError for what is not http(s):// or s3://, among them pipe:, which would run a command."""
        self.url = url
        scheme = url.partition("://")[0].lower()
        if scheme not in SCHEMES:
            raise ShardError(f"{redacted(url)}: shards are read from a folder, http://, https:// or s3://, and from nothing else")
        try:
            parts = urlsplit(url)
            whole = bool(parts.netloc) and not parts.fragment
        except ValueError:
            whole = False
        if not whole:
            raise ShardError(f"{redacted(url)}: is no whole URL; name server and folder, and write a # in a password or a name as %23")
        if "://***@" in url or url.endswith("?***"):
            raise ShardError(f"{url}: is written down here without its password or signature; name the whole address again")
        self._scheme = scheme
        self.cache = Cache.of_this_node()
        self._hashes: frozenset[str] = frozenset()
        self._copies: dict[str, int] = {}

    def __str__(self) -> str:
        return redacted(self.url)

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_copies", {}).values():
            os.close(descriptor)

    def address(self, name: str) -> str:
        """Where the file `name` lies, fit to be shown."""
        return redacted(self._address(name))

    def read(self, name: str) -> bytes:
        """A small file, unverified and not cached: the manifest, which holds its own hash. Raises ShardError."""
        content: bytes = self._asked(name, lambda files, address: files.cat_file(address))
        return content

    def read_if_there(self, name: str) -> bytes | None:
        """The same of a file that nobody says is there, such as a split table that was added; None where there is none."""

        def request(files: AbstractFileSystem, address: str) -> bytes | None:
            try:
                content: bytes = files.cat_file(address)
            except FileNotFoundError:
                return None
            return content

        return self._asked(name, request)

    def expect(self, shards: Sequence[Mapping[str, Any]]) -> None:
        """Says which files belong together: they are never evicted for each other. Says aloud when they do not all fit."""
        self._hashes = frozenset(record["sha256"] for record in shards)
        total, room = sum(record["bytes"] for record in shards), self.cache.room()
        first_of_node = parent_process() is None and os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
        if total > room and first_of_node:
            print(
                f"{self}: {total / 2**30:,.2f} GiB of shards, and {self.cache.folder} has room for {room / 2**30:,.2f} GiB: what does not "
                f"fit is read over the network each time; free the disk or raise DIST_TRAIN_CACHE_GIB",
                file=sys.stderr,
                flush=True,
            )

    def copy(self, name: str, sha256: str) -> Path:
        """This node's copy of a file that is needed whole, a table or the index; it stays while this object lives.

        Verified each time: the disk may have changed it since it was fetched, and then it is fetched anew.
        """
        path = self.cache.folder / sha256
        for _ in range(2):
            if sha256 not in self._copies:
                descriptor = self.cache.open(sha256, 0, self._fetch(name, sha256), self._hashes, required=True)
                assert descriptor is not None
                self._copies[sha256] = descriptor
            if file_sha256(path) == sha256:
                return path
            os.close(self._copies.pop(sha256))
            self.forget(sha256)
        raise ShardError(f"{path}: the disk changes what is written to it; set DIST_TRAIN_CACHE to a folder on another one")

    def open_shard(self, record: Mapping[str, Any]) -> int | None:
        """A descriptor of this node's copy of a shard, to be closed by the caller; None when there is no room for a copy."""
        for _ in range(2):
            descriptor = self.cache.open(record["sha256"], record["bytes"], self._fetch(record["file"], record["sha256"]), self._hashes)
            if descriptor is None or os.fstat(descriptor).st_size == record["bytes"]:
                return descriptor
            os.close(descriptor)  # the node lost its power while the copy was on its way to the disk
            self.forget(record["sha256"])
        raise ShardError(
            f"{self.address(record['file'])}: the manifest states another length than that of the file it names; upload the folder again"
        )

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes of a file. Raises ShardError when the server cannot send a part of a file."""

        def request(files: AbstractFileSystem, address: str) -> bytes:
            content: bytes = files.cat_file(address, start=offset, end=offset + length)
            if len(content) < length:
                raise _NotTheFile(f"it sends {len(content):,} bytes where {length:,} were asked for")
            return content

        content = self._asked(name, request)
        if len(content) > length:
            raise ShardError(
                f"{self.address(name)}: the server sends whole files only (it ignores ranges), and this one does not fit in "
                f"{self.cache.folder}; free the disk or raise DIST_TRAIN_CACHE_GIB"
            )
        return content

    def refuse_other_length(self, record: Mapping[str, Any]) -> None:
        """Asks the server how long a shard is. Raises ShardError when it cannot be had, or has another length than the manifest states."""
        found = self._asked(record["file"], lambda files, address: files.info(address)["size"])
        if found is not None and found != record["bytes"]:
            raise ShardError(f"{self.address(record['file'])}: has {found} bytes, not {record['bytes']}; upload the folder again")

    @contextmanager
    def whole_shard(self, record: Mapping[str, Any]) -> Iterator[Path]:
        """A verified shard as a file of this machine; where it does not fit in the cache, for this once."""
        descriptor, path = self.open_shard(record), self.cache.folder / record["sha256"]
        if descriptor is not None and file_sha256(path) != record["sha256"]:
            os.close(descriptor)
            self.forget(record["sha256"])
            descriptor = self.open_shard(record)
        if descriptor is not None:
            try:
                yield path
            finally:
                os.close(descriptor)
        else:
            with NamedTemporaryFile(prefix="shard-") as file:
                self._fetch(record["file"], record["sha256"])(Path(file.name))
                yield Path(file.name)

    def holds(self, sha256: str) -> bool:
        """Whether a copy of the file with that hash lies in this node's cache."""
        return (self.cache.folder / sha256).exists()

    def forget(self, sha256: str) -> None:
        """Takes a damaged copy out of the cache, so that it is fetched anew."""
        self.cache.drop(sha256)

    def _fetch(self, name: str, sha256: str) -> Callable[[Path], None]:
        """What writes the file `name` to a path, verified."""

        def fetch(path: Path) -> None:
            def request(files: AbstractFileSystem, address: str) -> None:
                files.get_file(address, str(path))
                if file_sha256(path) != sha256:
                    raise _NotTheFile("its SHA-256 is not the one that the manifest states")

            self._asked(name, request)

        return fetch

    def _asked(self, name: str, request: Callable[[AbstractFileSystem, str], Answer]) -> Answer:
        """What `request` returns, tried again where that can help. A full disk is the caller's business."""
        where = self.address(name)
        for pause in (*PAUSES, None):
            try:
                return request(self._files(), self._address(name))
            except ImportError as error:
                raise ShardError(
                    f"{where}: a package is missing ({error}); install the extra named remote: pip install -e '.[remote]'"
                ) from None
            except FileNotFoundError:
                raise ShardError(f"{where}: is not there; check the URL, or upload the folder again") from None
            except Exception as error:  # every file system has its own family of errors
                if is_full(error):
                    raise
                status = getattr(error, "status", None)
                reason = redacted(f"{status} {getattr(error, 'message', '')}" if status else str(error) or type(error).__name__)
                if isinstance(error, PermissionError) or status in (401, 403):
                    raise ShardError(f"{where}: the server refuses it ({reason}); {_WHO_ASKS[self._scheme]}") from None
                if self._scheme == "s3" and _is_about_credentials(error):
                    raise ShardError(f"{where}: the server was not asked ({reason}); {_WHO_ASKS[self._scheme]}") from None
                if pause is None or (status is not None and 400 <= status < 500 and status not in _TRY_AGAIN):
                    mend = "upload the folder again"
                    if not isinstance(error, _NotTheFile):
                        mend = "see that the server can be reached from this node, then go on"
                    raise ShardError(f"{where}: cannot be read ({reason}); {mend}") from None
                time.sleep(pause)
        raise AssertionError

    def _files(self) -> AbstractFileSystem:
        """fsspec keeps one per process, so that a forked worker gets connections of its own."""
        if self._scheme == "s3":
            return fsspec.filesystem("s3")  # its own timeouts: 5 s to connect, 15 s without a byte
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        return fsspec.filesystem(
            self._scheme,
            client_kwargs={"timeout": timeout, "trust_env": True},  # proxies and ~/.netrc, as curl has them
            headers={"Accept-Encoding": "identity"},  # the bytes as they lie there
            encoded=True,
        )

    def _address(self, name: str) -> str:
        parts = urlsplit(self.url)
        path = f"{parts.path.rstrip('/')}/{name}"
        return urlunsplit(parts._replace(path=path if self._scheme == "s3" else quote(path, safe="/%:@!$&'()*+,;=~")))


def _is_about_credentials(error: Exception) -> bool:
    """Whether s3 was not asked at all, because the AWS tools' settings name nobody who asks, or nobody that is there."""
    from botocore import exceptions as s3

    kinds = s3.NoCredentialsError, s3.PartialCredentialsError, s3.ProfileNotFound, s3.SSOError, s3.ConfigNotFound, s3.ConfigParseError
    return isinstance(error, kinds)
