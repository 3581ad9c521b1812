"""What a shard folder holds: described, opened, read at an offset, verified and fingerprinted here.

    koniq10k/
      manifest.json       label, patch size, patches per image, resize rule, layout, decoder, the SHA-256 of every file below
      images.csv          a row per image for people: id, opinion, std, group, width, height, path of its file and that file's sha256
      splits/<name>.csv   id -> train | val | test; a table of your own may be added there, in a file of its own
      shard-000000.tar    ordinary WebDataset members <id>.json and <id>.pixels.npy (or .pixels.zst, see shards/codecs.py)

      index.npy           a row per image for machines: shard, offset, size, lengths, checksums, boxes
      opinions.npy        float64 [images]
      ids.npy             UTF-8 [images], in ascending order
      parts.npy           uint8 [splits, images]: 0 train, 1 val, 2 test, 3 none; the splits of the build, by name

`pixels` is uint8 [planes, height, width, 3] and patch k is `pixels[n_k, y_k:y_k+size, x_k:x_k+size]`. Two layouts, one
format: 'patches' stores every patch cut out (a plane per patch), 'canvas' stores the image once (one plane), so that
overlapping patches share their pixels. A checksum per plane makes reading one patch as safe as reading the member.

The .npy files say what the tables say, for machines, and are never read into memory whole: benchmarks/ten_million.py says what that
buys. Three are verified before they are used. The index, the large one, is not: every row of it has a checksum of its own, which
is verified when the row is read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError, field_validator, model_validator

from shards.codecs import CODECS

if TYPE_CHECKING:
    from shards.remote import RemoteFolder

FORMAT = 1
PARTS = ("train", "val", "test")
LAYOUTS = ("patches", "canvas")
IMAGE_COLUMNS = ("id", "opinion", "std", "group", "width", "height", "enlarged", "path", "sha256")
BUILD_AGAIN = "run the same `python -m shards build` again, which writes only what is missing"
ROWS_AT_ONCE = 1 << 16  # of somebody's split table
USED = 0.1  # of a stated scale, that the opinions of a set span at least
OPEN_FILES = 256  # shards held open at once; a process may usually open 1,024 files


class ShardError(ValueError):
    """Something about photographs, tables or shards is not as it must be: what, where, and what to do."""


@dataclass(frozen=True)
class Label:
    """What the opinions of a data set mean.

    `low` and `high` bound the scale as its makers state it, or are None when nobody stated it.
    """

    name: str
    low: float | None
    high: float | None
    higher_is_better: bool

    def doubt(self, lowest: float, highest: float) -> str | None:
        """What to say where opinions from `lowest` to `highest` make the scale look like another label's; None where they do not."""
        if self.low is None or self.high is None or highest - lowest >= USED * (self.high - self.low):
            return None
        return (
            f"opinions from {lowest:g} to {highest:g} hardly use the scale of {self.low:g} to {self.high:g}: is it that of another label?"
        )

    def __str__(self) -> str:
        span = "scale not stated" if self.low is None or self.high is None else f"{self.low:g} to {self.high:g}"
        return f"{self.name} ({span}, {'higher' if self.higher_is_better else 'lower'} is better)"


@dataclass(frozen=True)
class Layout:
    """How the patches of one image are stored. `codec` is a name of shards.codecs."""

    name: str
    patch_size: int
    patches: int
    codec: str = "raw"

    @property
    def planes(self) -> int:
        return self.patches if self.name == "patches" else 1

    def plane_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels of one stored plane of an image of the given size."""
        return (self.patch_size, self.patch_size) if self.name == "patches" else (height, width)

    def image_bytes(self, width: int, height: int) -> int:
        """Bytes of the pixels of one image, before a codec packs them."""
        plane_height, plane_width = self.plane_size(width, height)
        return 3 * self.planes * plane_height * plane_width

    def index_dtype(self) -> np.dtype:
        """A row of index.npy: where the first plane lies, its size in pixels, bytes and CRC-32 per plane, (y, x) per patch."""
        return np.dtype(
            [
                ("shard", "<u4"),
                ("offset", "<u8"),
                ("height", "<u2"),
                ("width", "<u2"),
                ("lengths", "<u4", (self.planes,)),
                ("checksums", "<u4", (self.planes,)),
                ("corners", "<u2", (self.patches, 2)),
                ("row_checksum", "<u4"),
            ]
        )


class _Record(BaseModel):
    """What a manifest says of one shard."""

    model_config = ConfigDict(strict=True, extra="forbid")

    file: str
    bytes: NonNegativeInt
    sha256: str
    images: NonNegativeInt


class _Form(BaseModel):
    """The keys of a manifest. Label and layout decide what the pixels mean, so one that says more than we know is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: int
    data_set: str
    label: Label
    layout: Layout
    resize: dict[str, str]
    seed: int
    images: NonNegativeInt
    enlarged: NonNegativeInt
    index_sha256: str
    ids_sha256: str
    opinions_sha256: str
    parts_sha256: str
    images_sha256: str
    splits: dict[str, str]
    shards: list[_Record]
    plan: str
    versions: dict[str, str]
    fingerprint: str
    sha256: str

    @field_validator("layout")
    @classmethod
    def _is_one_of_ours(cls, layout: Layout) -> Layout:
        if layout.name not in LAYOUTS or layout.codec not in CODECS or min(layout.patches, layout.patch_size) < 1:
            raise ValueError(f"this version reads the layouts {', '.join(LAYOUTS)} and the codecs {', '.join(CODECS)}")
        layout.index_dtype()  # raises ValueError for more patches than a row can have
        return layout

    @field_validator("plan")
    @classmethod
    def _is_a_digest(cls, plan: str) -> str:
        int(plan[:8], 16)
        return plan

    @model_validator(mode="after")
    def _counts_its_images(self) -> _Form:
        if (found := sum(record.images for record in self.shards)) != self.images:
            raise ValueError(f"it counts {self.images} images, and {found} in its shards")
        return self


def row_checksum(row: np.void, plan: str) -> int:
    """A CRC-32 over a row of the index but for its last field, which holds it.

    It begins with the digest of the build's plan, so that a row of another build is never taken for one of this.
    """
    return zlib.crc32(row.tobytes()[:-4], int(plan[:8], 16))


def part_number(part: str | None) -> int:
    """How parts.npy writes train, val, test and None."""
    return PARTS.index(part) if part in PARTS else len(PARTS)


class Ids(Sequence[str]):
    """One id per image, in the order of the index, which is their alphabetical order. None is held in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # bytes, padded with zeros to one width

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [found.decode() for found in self._array[number].tolist()]
        return bytes(self._array[number]).decode()

    def numbers(self, ids: Sequence[str]) -> list[int | None]:
        """The image number of each of `ids`, None for one that is no image's. By bisection, best when they are sorted."""
        wanted = [image_id.encode() for image_id in ids]
        places = np.searchsorted(self._array, np.array(wanted, self._array.dtype)).clip(max=len(self) - 1)
        found = self._array[places].tolist()  # compared in Python: the array above cut what is longer than any id
        return [place if one == other else None for place, one, other in zip(places.tolist(), found, wanted, strict=True)]


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """A short name for exactly these data: a hash of everything in the manifest that decides a score."""
    return _digest_without(manifest, "fingerprint", "versions", "sha256")[:16]


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """A hash of all that the manifest says, versions included."""
    return _digest_without(manifest, "sha256")


def _digest_without(manifest: Mapping[str, Any], *left_out: str) -> str:
    said = {key: value for key, value in manifest.items() if key not in left_out}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces of a megabyte."""
    with path.open("rb") as file:
        return pieces_sha256(iter(lambda: file.read(1 << 20), b""))


def pieces_sha256(pieces: Iterable[bytes]) -> str:
    """The SHA-256 of a file that is made piece by piece."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def is_plain_name(name: object) -> bool:
    """Whether `name` can be a file of some folder, or a part of its name, and lead nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


class Shards:
    """An opened shard folder. Safe to share with forked workers, reads each patch at its offset."""

    def __init__(self, folder: str | Path) -> None:
        """Opens `folder`: every shard, and the index, must be there and of the right length.

        A URL (http://, https://, s3://) must come as text: a Path folds its slashes. Its shards are looked at when they are read.
        Raises ShardError naming the first file that is missing, truncated or not ours.
        """
        self._opened = folder
        self.remote = _remote_folder(str(folder))
        self.folder: Path | str = str(self.remote) if self.remote else Path(folder)  # a URL without its secrets: it is shown and logged
        self._mend = "check the URL, or upload the folder again" if self.remote else BUILD_AGAIN
        self._descriptors: dict[int, int | None] = {}
        if self.remote:
            self.manifest = _parsed_manifest(self.remote.read("manifest.json"), self.remote.address("manifest.json"), self._mend)
        else:
            self.manifest = _read_manifest(Path(folder))
        self.label = Label(**self.manifest["label"])
        self.layout = Layout(**self.manifest["layout"])
        self.fingerprint: str = self.manifest["fingerprint"]
        self.files: list[dict[str, Any]] = self.manifest["shards"]
        self.built_splits: dict[str, str] = self.manifest["splits"]
        if self.remote:
            self.remote.expect(self.files)  # each length is verified when the shard is fetched
            index = self.remote.copy("index.npy", self.manifest["index_sha256"])
        else:
            for record in self.files:
                self._check_length(record)
            index = self.path("index.npy")
        self.index = _mapped(index)  # all of it; for one image there is row()
        if self.index.dtype != self.layout.index_dtype() or self.index.shape != (len(self),):
            raise ShardError(f"{self.where('index.npy')}: was changed after it was written (its rows are others); {self._mend}")
        self._index_file = index.open("rb")
        self._first_row = index.stat().st_size - self.index.nbytes

    def __len__(self) -> int:
        return int(self.manifest["images"])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._opened}  # a spawned worker opens the folder anew: descriptors do not travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            if descriptor is not None:
                os.close(descriptor)

    @cached_property
    def opinions(self) -> np.ndarray:
        """One opinion per image, float64 [images], on the scale of `label`. Memory-mapped; raises ShardError when it was changed."""
        return _mapped(self._unchanged("opinions.npy", self.manifest["opinions_sha256"]))

    @cached_property
    def ids(self) -> Ids:
        """One id per image, in the order of the index. Raises ShardError when ids.npy is missing or was changed."""
        return Ids(_mapped(self._unchanged("ids.npy", self.manifest["ids_sha256"])))

    def image_rows(self) -> Iterator[dict[str, str]]:
        """The rows of images.csv. Raises ShardError when it is missing or was changed."""
        with self._unchanged("images.csv", self.manifest["images_sha256"]).open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)

    def split_names(self) -> list[str]:
        """The splits that the build wrote, and those that somebody added: of a URL, which tells of no files, the first alone."""
        added = [] if self.remote else self.path("splits").glob("*.csv")
        return sorted({*self.built_splits, *(path.stem for path in added)})

    def split(self, name: str | None = None) -> tuple[str, dict[str, np.ndarray]]:
        """The split's name and, for each of train, val and test, the image numbers of that part, ascending.

        Without a name: the official split when there is one, else the first round.
        Raises ShardError when there is no such split, when it names an unknown image or part, or one image twice, and
        when the build wrote it and it has been changed since: a split of your own goes into a file of its own.
        """
        names = self.split_names()
        chosen = name or ("official" if "official" in names else "round-01")
        added = self._added_table(chosen) if chosen not in self.built_splits else None
        if chosen not in self.built_splits and added is None:
            raise ShardError(f"{self.folder}: there is no split '{chosen}'; there are: {', '.join(names) or 'none'}")
        if added is None:
            self._unchanged(
                f"splits/{chosen}.csv", self.built_splits[chosen], "; a split of your own goes into another file of that folder"
            )
            parts = self._built_parts[sorted(self.built_splits).index(chosen)]
        else:
            parts = self._parts_of_a_table(added, self.where(f"splits/{chosen}.csv"))
        return chosen, {part: np.flatnonzero(parts == part_number(part)) for part in PARTS}

    @cached_property
    def _built_parts(self) -> np.ndarray:
        """uint8 [splits, images], as numbers of PARTS; the splits of the build in the order of their names."""
        return _mapped(self._unchanged("parts.npy", self.manifest["parts_sha256"]))

    def _added_table(self, name: str) -> bytes | None:
        """The csv file of a split that the build did not write; None where there is none."""
        if not is_plain_name(name):
            return None
        if self.remote:
            try:
                return self.remote.read_if_there(f"splits/{name}.csv")
            except ShardError as error:  # some servers refuse what is not there
                built = ", ".join(self.split_names())
                raise ShardError(f"{self.folder}: the build made no split '{name}' but {built}; and one that was added: {error}") from error
        path = self.path(f"splits/{name}.csv")
        return path.read_bytes() if os.path.isfile(path) else None  # of Path, a name that is too long for a disk is an error

    def _parts_of_a_table(self, table: bytes, path: str) -> np.ndarray:
        """The same for one split that somebody wrote: uint8 [images]. An image without a row, or a part, is in none."""
        parts, told = np.full(len(self), part_number(None), np.uint8), np.zeros(len(self), bool)
        rows = _split_rows(table, path)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            numbers = self.ids.numbers([row.get("id") or "" for _, row in some])
            for number, (line, row) in zip(numbers, some, strict=True):
                image_id, part = row.get("id"), row.get("part")
                if number is None or part not in (*PARTS, ""):
                    raise ShardError(
                        f"{path}, line {line}: '{image_id},{part}' names no image of this folder, or no part of a split "
                        f"({', '.join(PARTS)}); the columns are id and part, and images.csv lists the ids"
                    )
                if told[number]:
                    raise ShardError(f"{path}, line {line}: image '{image_id}' stands there a second time; take one of its rows out")
                parts[number], told[number] = part_number(part or None), True
        return parts

    def read_patches(self, image: int, patches: Sequence[int]) -> np.ndarray:
        """Some patches of one image, verified: uint8 [len(patches), patch_size, patch_size, 3].

        `image` counts from 0 in the order of the index, and `patches` name stored patches, counted from 0.
        Raises ShardError when the file ends early or a byte is not the one that was written.
        """
        row = self.row(image)
        if self.layout.name == "patches":
            return np.stack([self._read_plane(image, row, patch) for patch in patches])
        canvas, size = self._read_plane(image, row, 0), self.layout.patch_size
        return np.stack([canvas[y : y + size, x : x + size] for y, x in (row["corners"][patch].astype(int) for patch in patches)])

    def place_of(self, image: int) -> str:
        """Which image that is and the shard that holds it, for messages. Asks no server: it may be the one that is waited for."""
        is_near = self.remote is None or self.remote.holds(self.manifest["ids_sha256"])
        name = f"'{self.ids[image]}'" if is_near else f"image number {image}"
        return f"{name} in {self.where(self.files[int(self.row(image)['shard'])]['file'])}"

    def row(self, image: int) -> np.void:
        """The image's row of the index, verified. Raises ShardError when it is not as the build wrote it."""
        # Read, not mapped: every page of a mapped file that is touched counts as memory of every process that touches it.
        size = self.index.itemsize
        content = os.pread(self._index_file.fileno(), size, self._first_row + image * size)
        row: np.void = np.frombuffer(content.ljust(size), self.index.dtype)[0]
        if row_checksum(row, self.manifest["plan"]) != row["row_checksum"]:
            raise ShardError(f"{self.where('index.npy')}: the row of image {image} was changed after it was written; {self._mend}")
        return row

    def _read_plane(self, image: int, row: np.void, plane: int) -> np.ndarray:
        shard, length = int(row["shard"]), int(row["lengths"][plane])
        path = self.where(self.files[shard]["file"])
        offset = int(row["offset"]) + int(row["lengths"][:plane].sum(dtype=np.uint64))
        try:
            content = self._read(shard, offset, length)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); see that the disk is there, then go on") from error
        if len(content) == length and zlib.crc32(content) == row["checksums"][plane]:
            with suppress(ValueError):
                return CODECS[self.layout.codec].decode(content, int(row["height"]), int(row["width"]))
        mend = f"delete this shard and {BUILD_AGAIN}"
        if self.remote:
            self.remote.forget(self.files[shard]["sha256"])
            mend = "this node's copy was thrown away, so go on; if it happens again, upload the folder again"
        raise ShardError(f"{path}: image '{self.ids[image]}' is damaged (its checksum does not match); {mend}")

    def _read(self, shard: int, offset: int, length: int) -> bytes:
        descriptor = self._descriptor(shard)
        if descriptor is not None:
            return os.pread(descriptor, length, offset)
        assert self.remote is not None
        return self.remote.read_range(self.files[shard]["file"], offset, length)

    def _descriptor(self, shard: int) -> int | None:
        """The open file of a shard; None for one that is far and has no room near."""
        if shard not in self._descriptors:
            if len(self._descriptors) == OPEN_FILES:
                first_opened = self._descriptors.pop(next(iter(self._descriptors)))
                if first_opened is not None:
                    os.close(first_opened)
            record = self.files[shard]
            self._descriptors[shard] = self.remote.open_shard(record) if self.remote else os.open(self.path(record["file"]), os.O_RDONLY)
        return self._descriptors[shard]

    def whole_shard(self, shard: int) -> AbstractContextManager[Path]:
        """A shard as a file of this machine, to be read from end to end."""
        record = self.files[shard]
        return self.remote.whole_shard(record) if self.remote else nullcontext(self.path(record["file"]))

    def path(self, name: str) -> Path:
        """Where a file of this folder lies. Raises ShardError for a URL, where nothing can be written."""
        if self.remote:
            raise ShardError(f"{self.folder}: is read from afar and cannot be changed; do it in the folder that was uploaded, upload that")
        return Path(self.folder) / name

    def where(self, name: str) -> str:
        """What a message calls a file of this folder."""
        return self.remote.address(name) if self.remote else str(self.path(name))

    def _check_length(self, record: Mapping[str, Any]) -> None:
        path = self.path(record["file"])
        found = path.stat().st_size if path.is_file() else None
        if found != record["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes, not {record['bytes']}"
            raise ShardError(f"{path}: {state}; {BUILD_AGAIN}")

    def _unchanged(self, name: str, sha256: str, hint: str = "") -> Path:
        """The path of a file of this folder, once it is known to be as the build wrote it."""
        if self.remote:
            return self.remote.copy(name, sha256)
        path = self.path(name)
        try:
            found = file_sha256(path)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); {BUILD_AGAIN}") from error
        if found != sha256:
            raise ShardError(f"{path}: was changed after it was written (its SHA-256 is another); {BUILD_AGAIN}{hint}")
        return path


def _mapped(path: Path) -> np.ndarray:
    """A .npy file of the build, memory-mapped. Raises ShardError when it is missing or shortened."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); {BUILD_AGAIN}") from error
    except Exception as error:  # a damaged header fails in many ways, from EOFError to tokenize.TokenError
        raise ShardError(f"{path}: was changed after it was written ({error}); {BUILD_AGAIN}") from error


def _split_rows(table: bytes, path: str) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        reader = csv.DictReader(io.TextIOWrapper(io.BytesIO(table), "utf-8-sig", newline=""))
        for row in reader:
            yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{path}: is not a csv file in UTF-8 ({error}); save it as one") from error


def _remote_folder(folder: str) -> RemoteFolder | None:
    if "://" not in folder and not folder.startswith("pipe:"):
        return None
    from shards.remote import RemoteFolder  # a folder of this machine does without its packages

    return RemoteFolder(folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        hint = "build some with `python -m shards build`"
        if (folder / ".build").is_dir():
            hint = f"an unfinished build lies there: {BUILD_AGAIN}"
        elif below := sorted(folder.glob("*/manifest.json")):
            hint = f"there are some one level below, in {', '.join(str(found.parent) for found in below[:3])}"
        raise ShardError(f"{folder}: {'holds no shards (no manifest.json)' if folder.is_dir() else 'there is no such folder'}; {hint}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); see that the disk is there and that you may read it") from error
    return _parsed_manifest(content, str(path), BUILD_AGAIN)


def _parsed_manifest(content: bytes, path: str, mend: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(content)
        form = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: is not a manifest of ours ({error}); {mend}") from error
    if form != FORMAT:
        raise ShardError(f"{path}: format {form}, this version reads format {FORMAT}; build the shards again in another folder")
    if manifest_sha256(manifest) != manifest.get("sha256"):
        raise ShardError(f"{path}: was changed after it was written (its SHA-256 does not match); {mend}")
    try:
        _Form.model_validate_json(content)
    except ValidationError as error:
        wrong = [(".".join(map(str, one["loc"])) or "images", one["msg"].removeprefix("Value error, ")) for one in error.errors()[:3]]
        listed = "; ".join(f"{key}: {what}" for key, what in wrong)
        raise ShardError(f"{path}: is no manifest that this version reads ({listed}); {mend}") from error
    for name in (manifest["data_set"], *manifest["splits"], *(record["file"] for record in manifest["shards"])):
        if not is_plain_name(name):  # whoever wrote the folder made the hash, too
            raise ShardError(f"{path}: names '{name}', which may lie outside of this folder; do not trust whoever made it")
    return manifest
