"""Shards under s3://: a real S3 client reads them from a real server of that protocol, on a port of this machine.

The server is moto's, which answers as S3 does, in a process of this test's own. Where it or the client is not installed, these tests
are skipped aloud.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import make_folder, shards_of

from shards import remote
from shards.__main__ import main
from shards.manifest import ShardError, Shards

try:
    import s3fs
    from moto.server import ThreadedMotoServer
except ImportError as error:
    reason = f"moto, flask, flask-cors and s3fs are needed ({error}): reading shards under s3:// is not tested"
    warnings.warn(reason, stacklevel=1)
    pytest.skip(reason, allow_module_level=True)

KEYS = {"AWS_ACCESS_KEY_ID": "anna", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder of 12 images in 6 shards."""
    folder = tmp_path_factory.mktemp("cups")
    return Path(shards_of(make_folder(folder / "cups"), folder / "shards").folder)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture(autouse=True)
def settings(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The AWS tools' settings: that server, a key, nothing of this machine's user; and an empty cache."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    wanted = KEYS | {"AWS_ENDPOINT_URL": server, "NO_PROXY": "127.0.0.1", "AWS_EC2_METADATA_DISABLED": "true"}
    wanted |= {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    for name, value in (wanted | {"DIST_TRAIN_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PAUSES", (0.05, 0.1, 0.2))
    s3fs.S3FileSystem.clear_instance_cache()  # it keeps a client with the settings that were there when it was made
    return monkeypatch


@pytest.fixture(scope="session")
def client(server: str) -> Any:
    """Another client of that server, which also writes."""
    made = s3fs.S3FileSystem(key="anna", secret="s3cr3t", endpoint_url=server, skip_instance_cache=True)
    made.mkdir("cups")
    return made


@pytest.fixture(scope="session")
def url(client: Any, built: Path) -> str:
    """The shard folder in a bucket."""
    client.put(f"{built}/", "cups/whole/", recursive=True)
    return "s3://cups/whole"


def everything(shards: Shards) -> np.ndarray:
    return np.stack([shards.read_patches(image, range(shards.layout.patches)) for image in range(len(shards))])


def test_s3_gives_the_patches_and_the_tables_of_the_folder_that_was_uploaded(url: str, built: Path) -> None:
    far, here = Shards(url), Shards(built)
    assert np.array_equal(everything(far), everything(here))
    assert list(far.ids) == list(here.ids) and far.opinions.tolist() == here.opinions.tolist() and far.fingerprint == here.fingerprint
    assert all(np.array_equal(far.split()[1][part], here.split()[1][part]) for part in ("train", "val", "test"))
    assert main(["check", f"{url}/"]) == 0
    assert main(["fetch", url]) == 0


def test_s3_is_read_by_ranges_where_the_cache_has_no_room_and_by_forked_and_spawned_workers(
    url: str, built: Path, settings: pytest.MonkeyPatch
) -> None:
    settings.setenv("DIST_TRAIN_CACHE_GIB", "0")
    expected = everything(Shards(built))
    shards = Shards(url)
    assert np.array_equal(everything(shards), expected)  # the connections of the parent are open now
    assert not any(shards.remote.holds(record["sha256"]) for record in shards.files if shards.remote)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[np.ndarray] = context.Queue()
    worker = context.Process(target=lambda: queue.put(everything(shards)))
    worker.start()
    assert np.array_equal(queue.get(timeout=60), expected)
    worker.join(60)
    assert worker.exitcode == 0
    assert np.array_equal(everything(pickle.loads(pickle.dumps(shards))), expected)


@pytest.mark.parametrize("folder", ["s3://no-such-bucket/whole", "s3://cups/nothing"])
def test_what_is_not_there_is_named(url: str, folder: str) -> None:
    with pytest.raises(ShardError, match=rf"{folder}/manifest\.json: is not there; check the URL, or upload the folder again"):
        Shards(folder)


def test_another_file_than_the_one_that_was_uploaded_gets_one_piece_of_advice(client: Any, built: Path) -> None:
    client.put(f"{built}/", "cups/spoiled/", recursive=True)
    client.put_file(str(built / "images.csv"), "cups/spoiled/shard-000000.tar")
    with pytest.raises(ShardError) as refusal:
        everything(Shards("s3://cups/spoiled"))
    reason = "its SHA-256 is not the one that the manifest states"
    assert str(refusal.value) == f"s3://cups/spoiled/shard-000000.tar: cannot be read ({reason}); upload the folder again"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials found in env"),
        ({"AWS_PROFILE": "nobody"}, r"The config profile \(nobody\) could not be found"),
    ],
    ids=["no key", "half a key", "no such profile"],
)
def test_who_does_not_say_who_asks_is_told_so_at_once(
    change: dict[str, str | None], reason: str, url: str, settings: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        settings.delenv(name) if value is None else settings.setenv(name, value)
    settings.setattr(remote.time, "sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(ShardError, match=rf"manifest\.json: the server was not asked \({reason}.*\); set AWS_PROFILE, or AWS_ACCESS"):
        Shards(url)


def test_a_public_bucket_is_read_without_a_key(client: Any, url: str, built: Path) -> None:
    """In a process of its own: the client takes this setting from the environment once."""
    for key in client.find("cups/whole"):
        client.chmod(key, acl="public-read")
    code = f"from shards.manifest import Shards; print(Shards('{url}').fingerprint)"
    environment = {name: value for name, value in os.environ.items() if name not in KEYS} | {"FSSPEC_S3_ANON": "true"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == Shards(built).fingerprint
