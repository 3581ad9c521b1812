"""Shards read from afar: a real nginx, real processes, and a cache of one node that they share."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
from fsspec.registry import _registry
from nginx import Nginx, serving
from photographs import make_folder, shards_of

from dist_train.collection import open_collection
from dist_train.config import Data
from dist_train.doctor import read_shards
from shards import cache, remote
from shards.__main__ import main
from shards.check import describe
from shards.manifest import ShardError, Shards, file_sha256, fingerprint_of, manifest_sha256

READ_FOUR = """
import hashlib, sys
from shards.manifest import Shards
shards, digest = Shards(sys.argv[1]), hashlib.sha256()
for image in range(4):
    digest.update(shards.read_patches(image, range(shards.layout.patches)).tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder of 12 images in 6 shards of about 45 kB."""
    folder = tmp_path_factory.mktemp("cups")
    return Path(shards_of(make_folder(folder / "cups"), folder / "shards").folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    root = tmp_path_factory.mktemp("www")
    with serving(root, tmp_path_factory.mktemp("nginx"), rate="60k") as running:
        yield running


class Uploaded:
    """A copy of the shard folder on the server, for one test."""

    def __init__(self, server: Nginx, folder: Path) -> None:
        self.server, self.folder, self.url = server, folder, f"{server.url}/{folder.name}"

    def at(self, temper: str) -> str:
        """Its URL at a server of another temper, such as slow."""
        return f"{self.server.url}/{temper}/{self.folder.name}"

    def requests(self, ending: str = ".tar") -> list[tuple[str, int, bool]]:
        """File, status and whether a range was asked for, of every answer about files with that ending."""
        answers = [(Path(said["path"]), said["status"], bool(said["range"])) for said in self.server.requests()]
        return [(path.name, *rest) for path, *rest in answers if path.parts[-2] == self.folder.name and path.name.endswith(ending)]  # type: ignore[misc]


@pytest.fixture
def upload(server: Nginx, built: Path, tmp_path: Path) -> Callable[..., Uploaded]:
    def copy(source: Path = built, name: str = "a") -> Uploaded:
        folder = server.root / f"{tmp_path.name}-{name}"
        shutil.copytree(source, folder)
        return Uploaded(server, folder)

    return copy


@pytest.fixture(autouse=True)
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test, and short pauses."""
    monkeypatch.setenv("DIST_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIST_TRAIN_CACHE_GIB", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "PAUSES", (0.05, 0.1, 0.2))
    return tmp_path / "cache"


def bound(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setenv("DIST_TRAIN_CACHE_GIB", repr(count / 2**30))


def everything(shards: Shards) -> np.ndarray:
    return np.stack([shards.read_patches(image, range(shards.layout.patches)) for image in range(len(shards))])


def start_reader(url: str) -> subprocess.Popen[str]:
    """A process that reads the first four images, those of two shards."""
    return subprocess.Popen([sys.executable, "-c", READ_FOUR, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def held(near: Path) -> dict[str, int]:
    """The whole files of the cache and their lengths."""
    return {path.name: path.stat().st_size for path in near.iterdir() if len(path.name) == 64}


def hashes(folder: Path) -> list[str]:
    return [record["sha256"] for record in Shards(folder).files]


def rewrite(folder: Path, **changes: object) -> None:
    """Another manifest, consistent in itself."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_url_gives_the_patches_of_the_folder_that_was_uploaded(upload: Callable[..., Uploaded], built: Path) -> None:
    far, here = Shards(upload().url), Shards(built)
    assert np.array_equal(everything(far), everything(here))
    assert far.fingerprint == here.fingerprint and list(far.ids) == list(here.ids) and far.opinions.tolist() == here.opinions.tolist()
    assert list(far.image_rows()) == list(here.image_rows()) and far.split_names() == here.split_names()
    assert all(np.array_equal(far.split()[1][part], here.split()[1][part]) for part in ("train", "val", "test"))


def test_a_split_that_was_added_is_taken_from_afar_by_its_name(
    upload: Callable[..., Uploaded], built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "more"))
    assert main(["split", str(folder), "--rounds", "1", "--seed", "9", "--name", "mine"]) == 0
    cups = upload(folder)
    far, here = Shards(cups.url), Shards(folder)
    assert all(np.array_equal(far.split("mine-01")[1][part], here.split("mine-01")[1][part]) for part in ("train", "val", "test"))
    with pytest.raises(ShardError, match=r"there is no split 'yours'; there are: .*round-01"):
        far.split("yours")
    with pytest.raises(ShardError, match=r"the build made no split 'yours' but .*round-01.*; and one that was added: .* refuses it \(403"):
        Shards(cups.at("unlisted")).split("yours")
    with pytest.raises(ShardError, match=r"there is no split '../manifest'"):
        far.split("../manifest")
    assert main(["split", cups.url, "--export", str(tmp_path / "mine.csv"), "--name", "mine-01"]) == 0
    assert main(["split", cups.url, "--rounds", "1"]) == 1
    assert f"error: {cups.url}: is read from afar and cannot be changed" in capsys.readouterr().err


def test_an_image_from_afar_is_named_with_its_shard_and_no_secret_and_nobody_is_asked_for_its_name(upload: Callable[..., Uploaded]) -> None:
    cups = upload()
    shards = Shards(cups.at("secret").replace("://", "://anna:s3cr3t@"))
    place = f"in {cups.at('secret').replace('://', '://***@')}/shard-000001.tar"
    assert shards.place_of(3) == f"image number 3 {place}"
    assert not [name for name, status, _ in cups.requests("") if status == 200 and name not in ("manifest.json", "index.npy")]
    name = shards.ids[3]  # now they are near
    assert shards.place_of(3) == f"'{name}' {place}"


def test_opening_a_url_asks_for_no_shard(upload: Callable[..., Uploaded]) -> None:
    cups = upload()
    Shards(cups.url)
    assert [name for name, *_ in cups.requests("")] == ["manifest.json", "index.npy"]


def test_each_file_comes_once_however_many_processes_of_a_node_read_it(upload: Callable[..., Uploaded]) -> None:
    cups = upload()
    readers = [start_reader(cups.at("slow")) for _ in range(4)]
    outputs = [reader.communicate(timeout=60) for reader in readers]
    assert len({digest for digest, _ in outputs}) == 1 and outputs[0][0], outputs
    assert Counter(cups.requests()) == {(f"shard-{number:06d}.tar", 200, False): 1 for number in range(2)}
    assert len(cups.requests("index.npy")) == 1
    start_reader(cups.at("slow")).communicate(timeout=60)  # the next job on this node
    assert len(cups.requests()) == 2


def test_forked_and_spawned_workers_read_on_from_where_their_parent_opened_it(upload: Callable[..., Uploaded], built: Path) -> None:
    expected = everything(Shards(built))
    shards = Shards(upload().url)
    assert np.array_equal(shards.read_patches(0, [0]), expected[0, :1])  # the connections of the parent are open now

    def read(queue: multiprocessing.Queue[np.ndarray]) -> None:
        queue.put(everything(shards))

    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[np.ndarray] = context.Queue()
    workers = [context.Process(target=read, args=(queue,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert all(np.array_equal(queue.get(timeout=30), expected) for _ in workers)
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0
    assert np.array_equal(everything(shards), expected)
    assert np.array_equal(everything(pickle.loads(pickle.dumps(shards))), expected)


def test_a_process_killed_while_it_fetches_leaves_the_file_to_the_next_one(upload: Callable[..., Uploaded], near: Path) -> None:
    cups = upload()
    first = start_reader(cups.at("slow"))
    shard = hashes(cups.folder)[0]
    wait_for(lambda: list(near.glob(f"{shard}.*.part")))
    second = start_reader(cups.at("slow"))
    time.sleep(0.3)
    assert not (near / shard).exists()
    first.send_signal(signal.SIGKILL)
    digest, complaint = second.communicate(timeout=60)
    first.communicate()
    assert digest and not complaint
    assert [name for name, *_ in cups.requests()].count("shard-000000.tar") == 2  # the one that was cut off, and the whole one
    assert not list(near.glob("*.part"))


def test_who_waited_for_a_file_is_not_held_up_by_those_who_read_it_already(tmp_path: Path) -> None:
    content, found = b"a shard", list[bytes]()
    sha256 = hashlib.sha256(content).hexdigest()
    part, path = tmp_path / f"{sha256}.{len(content)}.part", tmp_path / sha256
    fetcher = os.open(part, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fetcher, fcntl.LOCK_EX)

    def wait() -> None:
        descriptor = cache.Cache(tmp_path, 1 << 20).open(sha256, len(content), lambda _: pytest.fail("it was fetched a second time"))
        assert descriptor is not None
        found.append(os.pread(descriptor, 99, 0))
        os.close(descriptor)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.3)
    os.write(fetcher, content)
    part.rename(path)
    fcntl.flock(fetcher, fcntl.LOCK_SH)  # whoever fetched it reads it, to the end of the run
    waiting.join(5)
    os.close(fetcher)
    assert found == [content]


def test_what_was_not_used_for_longest_makes_room_for_another_data_set(
    upload: Callable[..., Uploaded], near: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shards_of(make_folder(tmp_path / "more", width=100), tmp_path / "others")
    old, new = upload(name="old"), upload(Path(other.folder), "new")
    total = sum(record["bytes"] for record in other.files)
    bound(monkeypatch, int(1.6 * total))
    near.mkdir()
    left_behind = near / f"{'0' * 64}.{total}.part"  # by a process that was killed
    left_behind.touch()
    everything(Shards(old.url))
    everything(Shards(new.url))
    left = [sha256 in held(near) for sha256 in hashes(old.folder)]
    assert set(hashes(new.folder)) <= set(held(near)) and not any(ranged for *_, ranged in new.requests())
    assert left == sorted(left) and 0 < sum(left) < 6  # the first ones were read first, so they went first
    assert sum(held(near).values()) <= 1.6 * total and not left_behind.exists()


def test_tables_count_too_and_others_make_room_for_them(
    upload: Callable[..., Uploaded], near: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (built / "index.npy").stat().st_size
    bound(monkeypatch, 2 * size)
    near.mkdir()
    for letter in "abcd":  # of other data sets
        (near / (letter * 64)).write_bytes(bytes(size // 2))
    shards = Shards(upload().url)
    assert set(held(near)) == {"c" * 64, "d" * 64, file_sha256(built / "index.npy")}
    bound(monkeypatch, 0)
    assert len(Shards(shards.folder).ids) == 12 and set(held(near)) == {file_sha256(built / name) for name in ("index.npy", "ids.npy")}


@pytest.mark.parametrize(("limit", "left"), [(350, "ab"), (250, "b"), (150, "")])
def test_a_table_evicts_the_shards_of_its_own_set_where_others_do_not_suffice(near: Path, limit: int, left: str) -> None:
    near.mkdir()
    for used, letter in enumerate("abc"):  # a and b are of the set, c was used last
        (near / (letter * 64)).write_bytes(bytes(100))
        os.utime(near / (letter * 64), (used, used))
    table = bytes(99)
    sha256 = hashlib.sha256(table).hexdigest()

    def fetch(path: Path) -> None:
        path.write_bytes(table)

    descriptor = cache.Cache(near, limit).open(sha256, 0, fetch, {"a" * 64, "b" * 64}, required=True)
    assert descriptor is not None
    os.close(descriptor)
    assert set(held(near)) == {*(letter * 64 for letter in left), sha256}


def test_bytes_that_others_are_fetching_count_too(
    upload: Callable[..., Uploaded], near: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, cups = sum(record["bytes"] for record in Shards(built).files), upload()
    bound(monkeypatch, int(1.5 * total))
    near.mkdir()
    with (near / f"{'0' * 64}.{total}.part").open("w") as coming:
        fcntl.flock(coming, fcntl.LOCK_EX)
        everything(Shards(cups.url))
    assert 0 < len(set(hashes(built)) & set(held(near))) <= 3


def test_a_file_that_another_run_reads_is_not_evicted(
    upload: Callable[..., Uploaded], near: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shards_of(make_folder(tmp_path / "more", width=100), tmp_path / "others")
    running, new = upload(name="running"), upload(Path(other.folder), "new")
    bound(monkeypatch, 320_000)
    reads_on = Shards(running.url)
    everything(reads_on)
    assert np.array_equal(everything(Shards(new.url)), everything(other))
    assert set(hashes(running.folder)) <= set(held(near))
    assert any(ranged for *_, ranged in new.requests())
    everything(reads_on)
    assert len(running.requests()) == 6


def test_a_data_set_larger_than_the_cache_fills_it_once_and_reads_the_rest_by_ranges(
    upload: Callable[..., Uploaded], near: Path, built: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cups = upload()
    bound(monkeypatch, 120_000)
    far = Shards(cups.url)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "0.00 GiB of shards" in said and "is read over the network each time" in said
    for _ in range(3):
        assert np.array_equal(everything(far), everything(Shards(built)))
    whole = [name for name, _, ranged in cups.requests() if not ranged]
    assert 0 < len(whole) < 6 and len(whole) == len(set(whole))
    assert {status for name, status, ranged in cups.requests() if ranged} == {206}
    assert not {name for name, _, ranged in cups.requests() if ranged} & set(whole)
    assert sum(held(near).values()) <= 120_000 and not capfd.readouterr().err
    del far  # the next run reads in another order, and evicts nothing of what this one left for it
    again = Shards(cups.url)
    for image in reversed(range(len(again))):
        again.read_patches(image, [0])
    assert whole == [name for name, _, ranged in cups.requests() if not ranged]


def test_a_disk_that_is_nearly_full_is_not_filled(
    upload: Callable[..., Uploaded], near: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEEP_FREE", shutil.disk_usage("/").total)
    cups = upload()
    assert np.array_equal(everything(Shards(cups.url)), everything(Shards(built)))
    assert {ranged for *_, ranged in cups.requests()} == {True} and not set(hashes(built)) & set(held(near))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_while_shards_come_is_read_around(
    upload: Callable[..., Uploaded], small_disk: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIST_TRAIN_CACHE", str(small_disk))
    monkeypatch.setattr(cache, "KEEP_FREE", -(1 << 30))  # as if others took the room that was there when it was counted
    cups = upload()
    assert np.array_equal(everything(Shards(cups.url)), everything(Shards(built)))
    assert len({name for name, _, ranged in cups.requests() if ranged}) >= 3 and set(hashes(built)) & set(held(small_disk))
    assert not list(small_disk.glob("*.part"))


def test_a_disk_without_room_for_the_index_is_named(
    upload: Callable[..., Uploaded], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIST_TRAIN_CACHE", str(small_disk))
    with (small_disk / "others").open("wb") as file, pytest.raises(OSError, match="No space left"):
        file.write(bytes(1 << 20))
    with pytest.raises(ShardError, match=f"{small_disk}: this node's cache cannot be used .*No space left.*DIST_TRAIN_CACHE"):
        Shards(upload().url)


def test_on_a_full_disk_what_was_not_used_for_longest_makes_room_for_the_index(
    upload: Callable[..., Uploaded], small_disk: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIST_TRAIN_CACHE", str(small_disk))
    with (small_disk / ("a" * 64)).open("wb") as file, pytest.raises(OSError, match="No space left"):
        file.write(bytes(1 << 20))  # of another data set
    assert Shards(upload().url).fingerprint == Shards(built).fingerprint
    assert set(held(small_disk)) == {file_sha256(built / "index.npy")} and not list(small_disk.glob("*.part"))


def test_where_a_quota_is_full_a_file_that_is_needed_whole_gets_the_room_of_others(near: Path) -> None:
    others, sha256 = near / ("a" * 64), hashlib.sha256(b"the index").hexdigest()
    near.mkdir()
    others.write_bytes(bytes(99))

    def fetch(path: Path) -> None:
        path.write_bytes(b"the i")
        if others.exists():
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))  # though the disk itself has room
        path.write_bytes(b"the index")

    descriptor = cache.Cache(near, 1 << 20).open(sha256, 0, fetch, required=True)
    assert descriptor is not None and os.pread(descriptor, 99, 0) == b"the index"
    os.close(descriptor)
    assert held(near) == {sha256: 9} and not list(near.glob("*.part"))


def test_who_has_no_room_for_a_file_leaves_another_process_alone_that_fetches_it(near: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_room = cache.Cache._make_room

    def make_none(self: cache.Cache, part: Path, size: int, needed: Collection[str]) -> bool:
        assert not make_room(self, part, size, needed) and not part.exists()
        part.touch()  # the other one has found room
        return False

    monkeypatch.setattr(cache.Cache, "_make_room", make_none)
    assert cache.Cache(near, 10).open("a" * 64, 11, lambda _: pytest.fail("it was fetched")) is None
    assert [path.name for path in near.glob("*.part")] == [f"{'a' * 64}.11.part"]


def test_a_copy_that_its_disk_has_changed_is_found_out_and_fetched_anew(upload: Callable[..., Uploaded], near: Path, built: Path) -> None:
    cups, expected = upload(), everything(Shards(built))
    assert np.array_equal(everything(Shards(cups.url)), expected)
    shard, shortened = (near / sha256 for sha256 in hashes(built)[:2])
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.truncate(shortened, 1000)
    list(Shards(cups.url).ids)
    for table in ("ids.npy", "index.npy"):
        (near / file_sha256(built / table)).write_bytes(b"nothing")
    assert list(Shards(cups.url).ids) == list(Shards(built).ids)
    with pytest.raises(ShardError, match=r"/shard-000000\.tar: image 'cup0.' is damaged .* thrown away"):
        everything(Shards(cups.url))
    assert np.array_equal(everything(Shards(cups.url)), expected)


def test_other_bytes_than_the_manifest_names_never_enter_the_cache(upload: Callable[..., Uploaded], near: Path) -> None:
    cups = upload()
    shard = cups.folder / "shard-000002.tar"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # no pixel, so only the SHA-256 can tell
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-000002\.tar: cannot be read \(its SHA-256 is not the one that the manifest states"):
        everything(Shards(cups.url))
    assert not set(held(near)) & {file_sha256(shard), hashes(cups.folder)[2]} and not list(near.glob("*.part"))


def test_bytes_that_come_wrong_by_ranges_are_found_out(upload: Callable[..., Uploaded], monkeypatch: pytest.MonkeyPatch) -> None:
    bound(monkeypatch, 0)
    cups = upload()
    shard = cups.folder / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-000000\.tar: image 'cup0.' is damaged"):
        everything(Shards(cups.url))


@pytest.mark.parametrize(
    ("temper", "message", "tries"),
    [
        ("nowhere", r"manifest\.json: is not there; check the URL", 1),
        ("forbidden", r"manifest\.json: the server refuses it \(403 Forbidden\); .*netrc", 1),
        ("secret", r"manifest\.json: the server refuses it \(401 Unauthorized\); .*netrc", 1),
        ("busy", r"manifest\.json: cannot be read \(503 .*see that the server can be reached", 4),
    ],
)
def test_an_answer_that_is_no_file_is_explained_and_asked_for_again_only_where_that_helps(
    upload: Callable[..., Uploaded], temper: str, message: str, tries: int
) -> None:
    cups = upload()
    with pytest.raises(ShardError, match=message):
        Shards(cups.at(temper))
    assert len(cups.requests("manifest.json")) == tries


def test_a_shard_that_was_not_uploaded_is_named(upload: Callable[..., Uploaded]) -> None:
    cups = upload()
    (cups.folder / "shard-000003.tar").unlink()
    with pytest.raises(ShardError, match=rf"{cups.url}/shard-000003\.tar: is not there; .*upload the folder again"):
        everything(Shards(cups.url))


def test_a_server_that_ignores_ranges_is_named_where_ranges_are_needed(
    upload: Callable[..., Uploaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    cups = upload()
    Shards(cups.at("no-ranges")).read_patches(0, [0])
    bound(monkeypatch, 0)
    with pytest.raises(ShardError, match=r"shard-00000.\.tar: the server sends whole files only .*raise DIST_TRAIN_CACHE_GIB"):
        everything(Shards(cups.at("no-ranges")))


def test_a_shard_cut_short_on_the_server_is_named_whole_or_by_ranges(
    upload: Callable[..., Uploaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    cups = upload()
    os.truncate(cups.folder / "shard-000000.tar", 20_000)
    with pytest.raises(ShardError, match=r"shard-000000\.tar: cannot be read \(its SHA-256"):
        everything(Shards(cups.url))
    bound(monkeypatch, 0)
    with pytest.raises(ShardError, match=r"shard-000000\.tar: cannot be read \(it sends .* bytes where .* were asked for"):
        everything(Shards(cups.url))


def test_a_server_that_goes_and_comes_back_is_waited_for(built: Path, tmp_path: Path) -> None:
    with serving(built, tmp_path / "nginx", rate="40k") as server:
        shards = Shards(server.url)
        reader = start_reader(f"{server.url}/slow")
        wait_for(lambda: list((tmp_path / "cache").glob(f"{shards.files[0]['sha256']}.*.part")))
        time.sleep(0.2)
        server.stop()  # in the middle of a shard
        time.sleep(0.1)
        server.start()
        digest, complaint = reader.communicate(timeout=60)
        assert digest and not complaint
        server.stop()
        with pytest.raises(
            ShardError, match=r"manifest\.json: cannot be read \(Cannot connect to host .*see that the server can be reached"
        ):
            Shards(server.url)


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(ShardError, match=r"manifest\.json: cannot be read \(.*[Tt]imeout"):
        Shards(f"http://127.0.0.1:{mute.getsockname()[1]}/cups")


def test_a_password_and_a_signature_open_the_folder_and_are_never_shown(
    upload: Callable[..., Uploaded], built: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cups = upload()
    urls = [cups.at("secret").replace("://", "://anna:s3cr3t@"), f"{cups.at('signed')}?sig=s3cr3t"]
    for url in urls:
        shards = Shards(url)
        assert np.array_equal(everything(shards), everything(Shards(built)))
        assert np.array_equal(pickle.loads(pickle.dumps(shards)).read_patches(0, [0]), shards.read_patches(0, [0]))
        assert "s3cr3t" not in f"{shards.folder} {describe(shards)} {json.dumps(shards.manifest)}"
    monkeypatch.setenv("DIST_TRAIN_CACHE", os.environ["DIST_TRAIN_CACHE"] + "-new")
    (cups.folder / "shard-000003.tar").unlink()
    wrong = [urls[0].replace("s3cr3t@", "s3cr3tt@"), urls[1].replace("=s3cr3t", "=s3cr3tt")]
    for url in [
        *urls,
        *wrong,
        urls[0].replace(cups.server.url[7:], "127.0.0.1:1"),
        urls[1].replace("http:", "ftp:"),
        f"{cups.at('busy')}?sig=s3cr3t",
    ]:
        with pytest.raises(ShardError) as caught:
            everything(Shards(url))
        assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
        assert main(["check", url]) == 1
    assert "s3cr3t" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("url", ["pipe:touch {}", "pipe://touch {}", "ftp://host/{}", "file://{}", "simplecache::http://host/{}"])
def test_pipes_and_what_is_neither_http_nor_s3_are_refused(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    with pytest.raises(ShardError, match="shards are read from a folder, http://, https:// or s3://, and from nothing else"):
        Shards(url.format(made))
    assert main(["show", url.format(made)]) == 1 and "from nothing else" in capsys.readouterr().err
    assert not made.exists()


class Evil:
    """What runs a command when somebody unpickles it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


def use_all_tables(url: str) -> None:
    shards = Shards(url)
    describe(shards)
    list(shards.ids)


@pytest.mark.parametrize("name", ["index", "opinions", "ids", "parts"])
def test_a_table_that_holds_a_pickle_is_refused_and_not_run(name: str, upload: Callable[..., Uploaded], tmp_path: Path) -> None:
    cups, made = upload(), tmp_path / "made"
    np.save(cups.folder / f"{name}.npy", np.array([Evil(made)], object), allow_pickle=True)
    rewrite(cups.folder, **{f"{name}_sha256": file_sha256(cups.folder / f"{name}.npy")})
    with pytest.raises(ShardError, match="was changed after it was written"):
        use_all_tables(cups.url)
    assert not made.exists()


def test_a_shard_with_a_pickled_member_is_refused_by_the_check_and_never_unpickled(
    upload: Callable[..., Uploaded], built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cups, made = upload(), tmp_path / "made"
    shards = Shards(built)
    shard = cups.folder / shards.files[0]["file"]
    evil = tarfile.TarInfo("cup00.pyd")
    evil.size = len(pickle.dumps(Evil(made)))
    padded = pickle.dumps(Evil(made)).ljust(tarfile.BLOCKSIZE, b"\0")
    shard.write_bytes(evil.tobuf() + padded + (built / shard.name).read_bytes())
    record = shards.files[0] | {"bytes": shard.stat().st_size, "sha256": file_sha256(shard)}
    rewrite(cups.folder, shards=[record, *shards.files[1:]])
    assert main(["check", cups.url]) == 1
    assert "expected the member cup00.json, found cup00.pyd" in capsys.readouterr().err
    with pytest.raises(ShardError, match="is damaged"):
        everything(Shards(cups.url))
    assert not made.exists()


def test_show_check_and_fetch_take_a_url(
    upload: Callable[..., Uploaded], built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cups = upload()
    assert main(["show", cups.url]) == 0
    assert capsys.readouterr().out.strip() == describe(Shards(built)) and not cups.requests()
    assert main(["fetch", cups.url]) == 0
    assert "0.00 GB of them were fetched now" in capsys.readouterr().out and len(cups.requests()) == 6
    asked = len(cups.requests(""))
    use_all_tables(cups.url)
    list(Shards(cups.url).image_rows())
    assert {name for name, *_ in cups.requests("")[asked:]} == {"manifest.json"}
    assert main(["fetch", cups.url]) == 0 and main(["check", cups.url]) == 0
    assert "every byte is as it was written" in capsys.readouterr().out and len(cups.requests()) == 6
    monkeypatch.setenv("DIST_TRAIN_CACHE", os.environ["DIST_TRAIN_CACHE"] + "-small")
    bound(monkeypatch, 120_000)
    assert main(["check", cups.url]) == 0  # what does not fit is fetched and thrown away
    assert main(["fetch", cups.url]) == 1
    assert "do not fit in" in capsys.readouterr().err
    assert main(["fetch", str(built)]) == 1
    assert "is a folder of this machine" in capsys.readouterr().err


def test_a_check_fetches_a_damaged_copy_anew(upload: Callable[..., Uploaded], near: Path, built: Path) -> None:
    cups = upload()
    assert main(["fetch", cups.url]) == 0
    shard = near / hashes(built)[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main(["check", cups.url]) == 0
    assert file_sha256(shard) == shard.name


def test_a_url_is_not_written_to(upload: Callable[..., Uploaded], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ShardError, match="is read from afar and cannot be changed"):
        Shards(upload().url).path("splits")


def test_a_cache_that_cannot_be_is_named(upload: Callable[..., Uploaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cups = upload()
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DIST_TRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(ShardError, match=r"file: this node's cache cannot be used .*DIST_TRAIN_CACHE"):
        Shards(cups.url)
    monkeypatch.setenv("DIST_TRAIN_CACHE_GIB", "many")
    with pytest.raises(ShardError, match="DIST_TRAIN_CACHE_GIB=many is no number of GiB"):
        Shards(cups.url)


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIST_TRAIN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    with pytest.raises(ShardError, match="this user has no home folder for a cache; set DIST_TRAIN_CACHE"):
        Shards("http://host/cups")


@pytest.mark.parametrize("url", ["http://", "s3://", "http://[::1/cups", "http://anna:s3#cr3t@host/cups"])
def test_what_is_no_whole_url_is_refused_before_anybody_is_asked(url: str) -> None:
    with pytest.raises(ShardError, match="is no whole URL; name server and folder") as refusal:
        Shards(url)
    assert "cr3t" not in str(refusal.value)


def test_a_file_that_vanishes_from_the_cache_while_it_is_counted_is_no_error(near: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near.mkdir(parents=True, exist_ok=True)
    for letter in "ab":
        (near / (letter * 64)).write_bytes(bytes(99))
    listed = list(near.iterdir())
    (near / ("b" * 64)).unlink()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    assert cache.Cache(near, 1 << 20).room() == 1 << 20


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, url in (("aiohttp", "https://host/cups"), ("s3fs", "s3://bucket/cups")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)  # what it has imported before
        with pytest.raises(ShardError, match=rf"manifest\.json: a package is missing \(.*{package}.*the extra named remote"):
            Shards(url)


def test_a_page_instead_of_a_manifest_is_answered_with_what_mends_an_upload(upload: Callable[..., Uploaded]) -> None:
    cups = upload()
    (cups.folder / "manifest.json").write_text("<html>please sign in</html>")
    with pytest.raises(ShardError, match=r"manifest\.json: is not a manifest of ours \(.*\); check the URL, or upload the folder again"):
        Shards(cups.url)


def test_a_manifest_cannot_name_a_file_outside_the_cache(upload: Callable[..., Uploaded], tmp_path: Path) -> None:
    cups = upload()
    rewrite(cups.folder, index_sha256="../outside")
    with pytest.raises(ShardError, match="is no SHA-256"):
        Shards(cups.url)
    assert not (tmp_path / "outside").exists()


def test_the_doctor_asks_for_the_length_of_every_shard_and_fetches_one(upload: Callable[..., Uploaded], near: Path) -> None:
    uploaded = upload()
    collection = open_collection(Data(shards=uploaded.url))
    reading = read_shards(collection)
    assert (reading.shards, reading.images) == (6, 1)
    assert len({*held(near)} & {record["sha256"] for record in collection.members[0].shards.files}) == 1
    short = uploaded.folder / "shard-000003.tar"
    short.write_bytes(short.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"shard-000003\.tar: has \d+ bytes, not \d+; upload the folder again"):
        read_shards(collection)
