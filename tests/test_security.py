"""What others made, a shard folder, a picture, a model, a config, can be wrong or refused, but runs nothing and reaches nothing else."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import shards_of
from runs import LIMIT, TINY, status

from dist_train.collection import Scale
from dist_train.config import Config, Model, load_config
from dist_train.errors import ConfigError
from dist_train.model_folder import Cutting, build_model, open_model, save_model
from dist_train.tensor_files import save_tensors
from shards.__main__ import main
from shards.check import check
from shards.manifest import Label, ShardError, Shards, file_sha256, fingerprint_of, manifest_sha256
from shards.photographs import decode_photograph, photograph_size

OUTSIDE = "../../outside"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 80\n%%EndComments\nshowpage\n%%EOF\n"


def sealed(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes a manifest as whoever makes a folder can: with all hashes right."""
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", [OUTSIDE, "/etc/hostname", "..", "a\\b", ""])
@pytest.mark.parametrize("what", ["data set", "split", "shard"])
def test_a_manifest_that_names_a_place_outside_of_its_folder_is_refused(own: Shards, what: str, name: str) -> None:
    folder, manifest = Path(own.folder), dict(own.manifest)
    if what == "data set":
        manifest["data_set"] = name
    elif what == "split":
        manifest["splits"] = {name: "0" * 64}
    else:
        manifest["shards"] = [{**manifest["shards"][0], "file": name}, *manifest["shards"][1:]]
    sealed(folder, manifest)
    with pytest.raises(ShardError, match="may lie outside of this folder"):
        Shards(folder)


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("layout", "codec"), "brotli", "layout: this version reads .* the codecs raw, zstd"),
        (("layout", "name"), "tiles", "layout: this version reads the layouts patches, canvas"),
        (("layout", "patches"), 0, "layout: this version reads"),
        (("layout", "patches"), 1 << 40, "layout: "),
        (("layout", "planes"), 3, "layout.planes: "),
        (("label", "name"), None, "label.name: Field required"),
        (("shards",), None, "shards: Field required"),
        (("shards", 0, "bytes"), None, "shards.0.bytes: Field required"),
        (("shards", 0, "images"), 1, "images: it counts 12 images, and 11 in its shards"),
        (("splits",), ["round-01"], "splits: Input should be an object"),
        (("resize",), None, "resize: Field required"),
        (("plan",), "the plan", "plan: "),
        (("augment",), True, "augment: Extra inputs are not permitted"),
    ],
)
def test_a_manifest_whose_hashes_are_right_and_whose_keys_are_not_is_refused_by_the_key(
    own: Shards, place: tuple[str | int, ...], value: object, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`value` None takes the key away."""
    manifest = copy.deepcopy(own.manifest)
    inner: Any = manifest
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    if value is None:
        del inner[place[-1]]
    sealed(Path(own.folder), manifest)
    assert main(["check", str(own.folder)]) == 1
    assert re.search(rf"manifest\.json: is no manifest that this version reads \({complaint}.*\); ", capsys.readouterr().err)


def test_an_array_that_would_be_unpickled_is_refused(own: Shards) -> None:
    folder = Path(own.folder)
    np.save(folder / "index.npy", np.array([print], dtype=object))
    with pytest.raises(ShardError, match=r"index\.npy"):
        Shards(folder)


@pytest.mark.parametrize("kind", ["a link to itself", "a file with holes"])
def test_a_member_that_is_no_plain_file_is_not_read(folder: Path, tmp_path: Path, kind: str) -> None:
    own = shards_of(folder, tmp_path / "out")
    path = Path(own.folder) / own.files[0]["file"]
    with tarfile.open(path) as tar:
        first = tar.next()
    assert first
    content = bytearray(path.read_bytes())
    member = tarfile.TarInfo(first.name)
    member.type, member.linkname = (tarfile.SYMTYPE, first.name) if kind == "a link to itself" else (tarfile.GNUTYPE_SPARSE, "")
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if kind == "a file with holes":  # 8 GiB of nothing, in a header of 512 bytes
        head[386:410] = b"00000000000\0" * 2
        head[483:495] = b"77777777777\0"
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    content[: len(head)] = head
    path.write_bytes(content)
    record = {**own.files[0], "bytes": len(content), "sha256": file_sha256(path)}
    sealed(Path(own.folder), {**own.manifest, "shards": [record, *own.files[1:]]})
    with pytest.raises(ShardError, match=f"found {first.name}, which is no plain file"):
        check(own.folder)


def test_a_picture_that_is_a_program_is_not_run_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    with pytest.raises(ShardError, match="it is no picture of a format that is read here"):
        photograph_size(path)
    with pytest.raises(ShardError, match="it is no picture of a format that is read here"):
        decode_photograph(EPS, path)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jp2", "jpeg", "png", "ppm", "tga", "tiff", "webp"])
def test_pictures_of_every_usual_kind_are_still_opened(suffix: str) -> None:
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (16, 8), (10, 200, 30)).save(content, {"jp2": "jpeg2000"}.get(suffix, suffix))
    assert decode_photograph(content.getvalue(), suffix).shape == (8, 16, 3)


def test_a_model_whose_data_set_is_a_path_is_refused(tmp_path: Path) -> None:
    config = Config(model=Model(backbone="test_convnext", pretrained=False))
    weights = build_model(config, 64, (0.0, 100.0)).state_dict()
    label, cutting = Label("MOS", 0.0, 100.0, True), Cutting(64, 4, "none", 0)
    save_model(tmp_path, weights, config, {"tiny": Scale(label)}, {"tiny": cutting}, {"trained_on": {OUTSIDE: {}}})
    with pytest.raises(ConfigError, match="cannot be part of a file name"):
        open_model(tmp_path)


def test_a_config_of_lists_in_lists_ends_at_once_in_a_short_message(tmp_path: Path) -> None:
    lists = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)), "run: {folder: *a11}"]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lists))
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"run\.folder=") as error:
        load_config(path)
    assert len(str(error.value)) < 10_000 and time.monotonic() - started < 5


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: {folder: !!python/object/apply:os.system ['exit 1']}")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)


@pytest.mark.parametrize(("mask", "rights"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_weights_are_as_open_as_the_user_wants_new_files_to_be(tmp_path: Path, mask: int, rights: int) -> None:
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == rights


def test_what_is_saved_of_an_address_holds_no_password() -> None:
    config = Config.model_validate({"data": {"shards": "https://me:secret@server/koniq?signature=secret"}})
    assert "secret" not in json.dumps(config.model_dump(mode="json"))


@pytest.mark.parametrize("key", ["model.pretrained", "model.start_from"])
def test_weights_at_an_address_are_refused_and_its_password_is_not_repeated(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="this is an address; download the file and name that") as refused:
        load_config(tmp_path / "config.yaml", [f"{key}=https://me:secret@server/weights.safetensors"])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("secret", ["me:{}@server/koniq", "server/koniq?signature={}"])
@pytest.mark.parametrize("value", ["[{}]", "{{here: [{}]}}"])
def test_a_message_that_cuts_an_address_short_shows_nothing_of_its_secret(tmp_path: Path, value: str, secret: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {shards: " + value.format(json.dumps("https://" + secret.format("secret" * 100))) + "}")
    with pytest.raises(ConfigError, match=r"data\.shards=.*server/koniq") as refused:
        load_config(path)
    assert "secret" not in str(refused.value)


# `python -m dist_train`, which notes every path that Python opens for writing, makes, names or removes, in loader workers too.
NOTING = """
import os, sys

notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
paths_of = {"open": 1, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "os.utime": 1}
paths_of |= {"os.rename": 2, "os.link": 2, "os.symlink": 2, "sqlite3.connect": 1}


def note(event, arguments):
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return
    below = arguments[1] if event in ("os.remove", "os.rmdir") else -1  # as shutil.rmtree names files: by an open folder
    folder = os.readlink(f"/proc/self/fd/{below}") if below >= 0 else os.getcwd()
    for path in arguments[: paths_of.get(event, 0)]:
        if not isinstance(path, int):
            os.write(notes, os.fsencode(os.path.abspath(os.path.join(folder, os.fsdecode(path)))) + b"\\n")


sys.addaudithook(note)
from dist_train.__main__ import main

sys.exit(main())
"""


def test_a_training_writes_nowhere_but_in_its_run_folder_and_where_systems_keep_what_is_temporary(shards: Path, tmp_path: Path) -> None:
    run, program = tmp_path / "run", tmp_path / "noting.py"
    home, here, temporary = tmp_path / "home", tmp_path / "here", Path(tempfile.mkdtemp(dir="/tmp"))  # short: sockets are made there
    home.mkdir()
    here.mkdir()
    program.write_text(NOTING)
    own = {"HOME": str(home), "TMPDIR": str(temporary), "NOTES": str(tmp_path / "notes"), "OMP_NUM_THREADS": "1"}
    own["PYTHONDONTWRITEBYTECODE"] = "1"  # a first import of anything else writes beside its source
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MPLCONFIGDIR", "XDG_", "TORCHINDUCTOR_"))}
    words = (sys.executable, program, "train", TINY, f"data.shards={shards}", f"run.folder={run}", "train.epochs=1", "ema.decay=0.9")
    subprocess.run([*map(str, words)], cwd=here, env=inherited | own, check=True, timeout=LIMIT)
    noted = [Path(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert status(run)["status"] == "finished"
    assert {"metrics.jsonl", "report.png", "lock", "config.yaml"} <= {path.name for path in noted if path.parent == run}
    fonts = (home / ".cache", home / ".config")  # matplotlib's list of the fonts that there are, as SECURITY.md says
    elsewhere = [path for path in noted if not any(path.is_relative_to(place) for place in (run, temporary, "/dev", *fonts))]
    assert not elsewhere and not [*here.iterdir()]
    assert {path.parent.name for path in home.rglob("*") if path.is_file()} <= {"matplotlib"}
    shutil.rmtree(temporary)
