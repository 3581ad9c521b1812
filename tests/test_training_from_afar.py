"""Training on shards that lie on a server: a real nginx, real ranks and loader workers, and one cache that they share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
import torch
import warm
from nginx import Nginx, serving

from dist_train.__main__ import main
from dist_train.config import Config, load_config, save_config
from shards.manifest import Shards

pytestmark = pytest.mark.timeout(600)

RATE = 150_000  # bytes a second of a slow server
SECRET = "s3cr3t"  # the password of anna, and the signature, at that nginx


@pytest.fixture
def server(shards: Path, tmp_path: Path) -> Iterator[Nginx]:
    """A server of those shards, under /tiny. One for each test: a server tells of a request when it has ended, and those of a run
    that was stopped end after it."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "tiny").symlink_to(shards)
    with serving(tmp_path / "www", tmp_path / "nginx", rate=f"{RATE}") as running:
        yield running


@pytest.fixture(autouse=True)
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for every test."""
    monkeypatch.setenv("DIST_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def with_password(server: Nginx) -> str:
    return f"{server.url}/secret/tiny".replace("://", f"://anna:{SECRET}@")


def with_signature(server: Nginx) -> str:
    return f"{server.url}/signed/tiny?sig={SECRET}"


def downloads(server: Nginx) -> Counter[str]:
    """How often each file was sent."""
    return Counter(Path(said["path"]).name for said in server.requests() if said["status"] in (200, 206))


def everything_in(folder: Path) -> bytes:
    return b"".join(str(path).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_run_from_afar_is_the_run_on_the_folder_fetches_each_shard_once_and_writes_no_secret(
    server: Nginx, shards: Path, tmp_path: Path
) -> None:
    settings = ("data.workers=2", "train.epochs=1")
    runs.train(2, tmp_path / "near", shards, *settings)
    far = tmp_path / "far"
    far.mkdir()
    (far / "stop").touch()  # a run that is stopped after its first step, and goes on with another address
    said = runs.train(2, far, with_password(server), *settings)
    assert runs.status(far)["steps"] == 1
    said += runs.train(2, far, with_signature(server), *settings)
    assert "going on from" in said
    near, other = (runs.weights(folder, 5) for folder in (tmp_path / "near", far))
    assert all(torch.equal(near[name], other[name]) for name in near)
    assert (far / "scores-test.csv").read_bytes() == (tmp_path / "near" / "scores-test.csv").read_bytes()
    fetched = downloads(server)
    assert {name: fetched[name] for name in fetched if name.endswith(".tar")} == {record["file"]: 1 for record in Shards(shards).files}
    assert SECRET not in said
    assert SECRET.encode() not in everything_in(far)
    for settings_file in (far / "config.yaml", far / "best" / "config.yaml"):
        assert load_config(settings_file).data.shards == f"{server.url}/signed/tiny?***"


def test_a_run_on_a_slow_server_ends_well_and_nothing_goes_wrong_in_telling_where_it_is(
    server: Nginx, shards: Path, tmp_path: Path
) -> None:
    assert min(record["bytes"] for record in Shards(shards).files) > 4 * RATE  # seconds: some beats are told meanwhile
    run = tmp_path / "run"
    run.mkdir()
    (run / "stop").touch()  # after the first step
    said = runs.train(2, run, f"{server.url}/slow/tiny")
    assert runs.status(run)["steps"] == 1
    assert "Exception in thread" not in said and "cannot tell" not in said


def test_a_run_on_a_server_that_is_stuck_ends_in_the_time_that_the_config_grants_and_says_which_shard_it_waits_for(
    server: Nginx, tmp_path: Path
) -> None:
    address = f"{server.url}/stuck/tiny".replace("://", f"://anna:{SECRET}@")
    settings = (f"run.folder={tmp_path / 'run'}", f"data.shards={address}", "run.timeout_minutes=0.25")
    ended = warm.run("train", runs.TINY, *settings, world=2)
    assert ended.returncode == 1
    reason, said = runs.status(tmp_path / "run")["reason"], ended.stdout + ended.stderr
    shown = re.escape(f"{server.url}/stuck/tiny".replace("://", "://***@"))
    assert re.search(rf"waiting for a batch \(worker 0 reads image number \d+ in {shown}/shard-00000\d\.tar\)", reason), reason
    assert "Exception in thread" not in said and SECRET not in said + reason


def test_a_plan_reads_an_address_fetches_no_shard_and_shows_no_secret(
    server: Nginx, empty_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = f"data.sets={{one: {{shards: '{with_password(server)}'}}, other: {{shards: '{with_signature(server)}'}}}}"
    for data in (f"data.shards={with_password(server)}", sets):
        assert main(["plan", str(empty_config), data, "model.backbone=test_convnext"]) == 0
        told = capfd.readouterr()
        assert f"{server.url.replace('://', '://***@')}/secret/tiny" in told.out
        assert "train 40, val 10, test 10 images" in told.out
        assert SECRET not in told.out + told.err
    assert not [name for name in downloads(server) if name.endswith(".tar")]


@pytest.fixture
def empty_config(tmp_path: Path) -> Path:
    path = tmp_path / "empty.yaml"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("data.shards={url}/secret/nothing", "manifest.json: is not there"),
        ("data.shards={url}x/secret/tiny", "cannot be read"),
        ("data.sets={url}/secret/tiny", "should be a valid dictionary"),
        ("data.shards=[{url}/secret/tiny]", "should be a valid string"),
        ("datashards={url}/secret/tiny", "write settings as section.key=value"),
        ("data.shards={url}/secret/tiny: [", "the value is not YAML"),
    ],
)
def test_no_complaint_repeats_the_secret_of_an_address(
    server: Nginx,
    empty_config: Path,
    tmp_path: Path,
    setting: str,
    complaint: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shards.remote.PAUSES", (0.0,))
    url = server.url.replace("://", f"://anna:{SECRET}@")
    assert main(["train", str(empty_config), f"run.folder={tmp_path / 'run'}", setting.format(url=url)]) == 1
    told = capfd.readouterr()
    assert complaint in told.err
    assert SECRET not in told.out + told.err
    assert not (tmp_path / "run").exists()


def test_an_address_as_it_was_written_down_is_asked_for_again(server: Nginx, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for address in (with_password(server), with_signature(server)):
        save_config(Config.model_validate({"data": {"shards": address}}), tmp_path / "config.yaml")
        assert main(["plan", str(tmp_path / "config.yaml")]) == 1
        assert "is written down here without its password or signature; name the whole address again" in capfd.readouterr().err
        assert main(["plan", str(tmp_path / "config.yaml"), f"data.shards={address}", "model.backbone=test_convnext"]) == 0


def test_a_relative_folder_is_written_down_as_it_was_named(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    config = Config.model_validate({"data": {"sets": {"one": {"shards": Path(shards.name)}, "other": {"shards": f"./{shards.name}?x@y"}}}})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
