"""The data sets of a run, opened as one: usually a single shard folder, or several, each with its own scale.

The images of the sets are numbered through, the first set's first. A set alone is trained on in its own units, however the config
names it. Several are brought to one scale: the target of an image is its opinion less the mean over its set's training part, divided
by their standard deviation, and turned round where lower is better; what the model says is mapped back the same way, set by set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

import numpy as np

from dist_train.config import Data
from dist_train.errors import ConfigError
from shards.manifest import BUILD_AGAIN, PARTS, Label, ShardError, Shards

SPAN = 2.5  # standard deviations on either side of the mean that the scores of several sets span
NO_FILES = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Scale:
    """How the opinions of a set become targets, and scores come back: target = (opinion - mean) / std, std < 0 turns round."""

    label: Label
    mean: float = 0.0
    std: float = 1.0

    def to_targets(self, opinions: np.ndarray) -> np.ndarray:
        return (np.asarray(opinions, np.float64) - self.mean) / self.std

    def to_opinions(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores, np.float64) * self.std + self.mean


@dataclass(frozen=True)
class Member:
    """One data set of a run."""

    name: str
    shards: Shards
    split: str
    parts: dict[str, np.ndarray]  # image numbers, in its own shard folder, of train, val and test
    scale: Scale
    weight: float  # of its images in a batch, relative to the others'
    trained_before: np.ndarray = field(default_factory=lambda: NO_FILES)  # the files that the model was trained on before the run

    @property
    def deviations(self) -> np.ndarray:
        """The standard deviation of each image's ratings, in units of its opinion, nan where it is not known: float64 [images]."""
        return self._told["deviation"]

    @property
    def contents(self) -> np.ndarray:
        """What each image shows, as a number that is the same for all images of one content: uint64 [images]."""
        return self._told["content"]

    @property
    def files(self) -> np.ndarray:
        """The file of each image, as a number that is the same for all copies of it (`file_number`): uint64 [images]."""
        return self._told["file"]

    @cached_property
    def _told(self) -> np.ndarray:
        """What images.csv tells of each image, in one reading."""
        kinds = np.dtype([("deviation", np.float64), ("content", np.uint64), ("file", np.uint64)])
        rows = self.shards.image_rows()
        told = ((float(row["std"] or "nan"), _content_number(row["group"]), file_number(row, self.shards)) for row in rows)
        return np.fromiter(told, kinds, len(self.shards))

    def trained_too(self, images: np.ndarray) -> np.ndarray:
        """Those of some images, by their numbers, that are `in_train_too` or were `in_train_before`: int64."""
        return np.union1d(self.in_train_too(images), self.in_train_before(images))

    def in_train_too(self, images: np.ndarray) -> np.ndarray:
        """Those of some images whose content or very file is in train as well: int64."""
        train = self.parts["train"]
        known: np.ndarray = images[np.isin(self.contents[images], self.contents[train]) | np.isin(self.files[images], self.files[train])]
        return known

    def in_train_before(self, images: np.ndarray) -> np.ndarray:
        """Those of some images whose files the model that the run starts from was trained on: int64."""
        known: np.ndarray = images[np.isin(self.files[images], self.trained_before)]
        return known

    def split_fingerprint(self) -> str:
        """A short name for exactly these images in train, val and test."""
        return hashlib.sha256(b"/".join(self.parts[part].tobytes() for part in PARTS)).hexdigest()[:16]


@dataclass(frozen=True)
class Collection:
    """The members of a run. Images are numbered over all of them."""

    members: tuple[Member, ...]

    @property
    def patch_size(self) -> int:
        """Width and height of every patch in pixels."""
        return self.members[0].shards.layout.patch_size

    @cached_property
    def offsets(self) -> np.ndarray:
        """The number of each member's first image, and of the image after the last: int64 [members + 1]."""
        return np.cumsum([0, *(len(member.shards) for member in self.members)])

    @cached_property
    def training_images(self) -> np.ndarray:
        """Every training image, member by member: int64 [images]."""
        return np.concatenate([offset + m.parts["train"] for offset, m in zip(self.offsets, self.members, strict=False)])

    def sets_of(self, images: np.ndarray) -> np.ndarray:
        """The number of each image's member: int64 [n]."""
        return np.searchsorted(self.offsets, images, side="right") - 1

    def targets(self, images: np.ndarray) -> np.ndarray:
        """What the model should say of each image: float64 [n]."""
        sets, targets = self.sets_of(images), np.empty(len(images))
        for number, member in enumerate(self.members):
            here = sets == number
            targets[here] = member.scale.to_targets(member.shards.opinions[images[here] - self.offsets[number]])
        return targets

    def deviations(self, images: np.ndarray) -> np.ndarray:
        """How far the ratings of each image lie apart, in units of its target: float64 [n]."""
        sets, deviations = self.sets_of(images), np.empty(len(images))
        for number, member in enumerate(self.members):
            here = sets == number
            deviations[here] = member.deviations[images[here] - self.offsets[number]] / abs(member.scale.std)
        return deviations

    def name_of(self, image: int) -> str:
        """The image's id, for messages; with its set's name where there are several."""
        member, number = self._member_of(image)
        name = str(member.shards.ids[number])
        return f"{member.name}/{name}" if len(self.members) > 1 else name

    def read_patches(self, image: int, patches: Sequence[int]) -> np.ndarray:
        """Some patches of one image, verified: uint8 [len(patches), patch_size, patch_size, 3]."""
        member, number = self._member_of(image)
        return member.shards.read_patches(number, patches)

    def place_of(self, image: int) -> str:
        """Which image that is and the shard that holds it, for messages."""
        member, number = self._member_of(image)
        return member.shards.place_of(number)

    def _member_of(self, image: int) -> tuple[Member, int]:
        """The member that an image belongs to, and its number there."""
        number = int(self.sets_of(np.array([image]))[0])
        return self.members[number], image - int(self.offsets[number])


def file_number(row: Mapping[str, str], shards: Shards) -> int:
    """The number of a picture's file, by what is in it: the first 64 bits of its SHA-256, of a row of images.csv.

    Two different files among ten million and ten million others have the same one with a chance of 5e-6.
    """
    try:
        return int(row["sha256"][:16], 16)
    except ValueError as error:
        raise ShardError(f"{shards.where('images.csv')}: has a sha256 that is none ({error}); {BUILD_AGAIN}") from error


def _content_number(group: str) -> int:
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big")


def open_collection(data: Data, chooser: str = "val", trained_before: np.ndarray = NO_FILES) -> Collection:
    """Opens every shard folder that the config names. Raises ConfigError or ShardError.

    `chooser` is the part that chooses the epoch, `trained_before` uint64 [files] what the model was trained on before the run.
    """
    if not data.sets:
        if data.shards is None:
            raise ConfigError("data.shards is not set: name a shard folder, such as data.shards=demo/shards")
        shards = Shards(data.shards)
        split, parts = shards.split(data.split)
        return Collection((Member(shards.manifest["data_set"], shards, split, parts, Scale(shards.label), 1.0, trained_before),))
    if data.shards is not None or data.split is not None:
        raise ConfigError("data.sets names the shard folders, each with its own split: leave out data.shards and data.split")
    members = []
    for name, chosen in data.sets.items():
        shards = Shards(chosen.shards)
        split, parts = shards.split(chosen.split)
        weight = float(len(parts["train"])) if chosen.weight is None else chosen.weight
        scale = _standard_scale(shards, parts["train"]) if len(data.sets) > 1 else Scale(shards.label)
        members.append(Member(name, shards, split, parts, scale, weight, trained_before))
    sizes = {member.name: member.shards.layout.patch_size for member in members}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(f"data.sets: the sets have patches of different sizes ({found} pixels); build them with one --size")
    _refuse_leaks(members, chooser)
    return Collection(tuple(members))


def _refuse_leaks(members: Sequence[Member], chooser: str) -> None:
    """Raises ConfigError when the very file of a photograph trains in one set and chooses or tests in another, or chooses and tests."""
    has_seen = {"train": "trained on", "val": "been chosen by"}
    for one, other in permutations(members, 2):
        for seen, part in (("train", "val"), ("train", "test"), *[("val", "test")] * (chooser == "val")):
            here = other.parts[part]
            copies = here[np.isin(other.files[here], one.files[one.parts[seen]])]
            if len(copies):
                raise ConfigError(
                    f"data.sets: {len(copies):,} of the {len(here):,} images in {part} of {other.name}, such as "
                    f"'{other.shards.ids[copies[0]]}', are the same files as photographs in {seen} of {one.name}: "
                    f"a model would be judged on what it has {has_seen[seen]}; choose other splits, or leave one set out"
                )


def _standard_scale(shards: Shards, training: np.ndarray) -> Scale:
    opinions = np.asarray(shards.opinions[training], np.float64)
    std = float(opinions.std()) if len(opinions) else 0.0
    if std == 0:
        raise ConfigError(f"{shards.folder}: all training opinions are equal, so there is nothing to learn")
    return Scale(shards.label, float(opinions.mean()), std if shards.label.higher_is_better else -std)
