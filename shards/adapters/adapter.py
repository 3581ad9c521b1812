"""What an adapter is: how one public data set is read, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shards.datasets import DataSet, Refuse, data_set_of, stop_at
from shards.folders import Root
from shards.manifest import Label, ShardError
from shards.rows import Row

Found = tuple[Path, Iterable[Row | ShardError]]  # the table, and a row per image, or what is wrong with one


@dataclass(frozen=True)
class Adapter:
    """A public data set. Everything but `rows` is there to be shown, and to be compared with what a folder holds."""

    name: str  # on the command line: "kadid10k"
    title: str  # for people: "KADID-10k"
    rows: Callable[[Root, str], Found]  # (the folder it was unpacked to, the name of the label) -> its table and rows
    labels: tuple[Label, ...]  # the opinions it offers, the default first, with range and direction
    images: int  # as published, after what the protocol drops
    contents: int | None  # references or prompts; None: every image is its own content
    on_disk: str  # what is expected below --root, in one line
    protocol: str  # "official train/val/test", "80/20 x 10 by reference" ...
    ask: str  # where to ask for the data
    resize: str = "none"  # keeps the aspect
    paper_resize: str | None = None  # the rule of the HyperIQA paper; None for a set that it does not use
    sizes: tuple[tuple[int, int], ...] = ()  # width and height of all pictures, where they are alike; several: of several copies
    parts: tuple[int, ...] = ()  # images in train, val and test of the official split, as published

    def read(self, root: Path, label: str, refuse: Refuse = stop_at) -> DataSet:
        """The data set below `root`, its opinions those called `label`, its resize rule the one that keeps the aspect.

        Raises ShardError when there is no such label, and with the file and row of what is not as it is distributed, unless
        it is a row that `refuse` takes.
        """
        chosen = next((known for known in self.labels if known.name == label), None)
        if chosen is None:
            raise ShardError(f"{self.title} has no label '{label}'; choose --label {' or '.join(known.name for known in self.labels)}")
        table, rows = self.rows(Root(root, self.title), label)
        return data_set_of(self.name, chosen, self.resize, rows, table, root, refuse)
