"""The public data sets as they are distributed: one small adapter each, all ending in the same rows.

An adapter says where the pictures are, which column is the opinion, its range and direction, what must stay together
in a split (the group), the official split, and the resize rule.
"""

from __future__ import annotations

from shards.adapters.adapter import Adapter, Found
from shards.adapters.authentic import AUTHENTIC
from shards.adapters.synthetic import SYNTHETIC
from shards.datasets import CALLED_GROUP, CALLED_IMAGE, CALLED_PART, CALLED_SCORE, read_table
from shards.folders import Root
from shards.manifest import Label
from shards.splits import RATIO, ROUNDS

__all__ = ["ADAPTERS", "Adapter", "adapters_as_text"]


def _demo(root: Root, _: str) -> Found:
    """Its table is a user's own table, with group and split columns."""
    table = root.part("scores.csv")
    return table, read_table(table, root.part("images")).rows


_DEMO = Adapter(
    "demo",
    "the built-in demo",
    _demo,
    (Label("computed pseudo-opinion, not human", 0.0, 100.0, True),),
    images=714,
    contents=12,
    on_disk="scores.csv, images/",
    protocol="its own train/val/test",
    ask="python -m shards demo",
)

ADAPTERS: dict[str, Adapter] = {adapter.name: adapter for adapter in (*AUTHENTIC, *SYNTHETIC, _DEMO)}


_TABLES = (
    "any other: --table FILE --images DIR, the folder that the names of the pictures are relative to",
    "    csv, .xlsx  image and score; may have std, group (what stays together in a split) and split (train, val, test)",
    "    pyiqa       its meta csv: dist_name or img_name, mos or dmos, std, ref_name, official_split",
    '    Q-Align     its .json lists: [{"image": "a.png", "gt_score": 3.5}, ...]',
    f"    also read   for image: {', '.join(CALLED_IMAGE[1:])}; for score: {', '.join(CALLED_SCORE[1:])}",
    f"                for group: {', '.join(CALLED_GROUP[1:])}; for split: {', '.join(CALLED_PART[1:])}",
    "    label       --label, --range LOW HIGH, and --lower-is-better of a DMOS",
    f"    protocol    official where there is a split column, else {RATIO} x {ROUNDS} by group",
)


def adapters_as_text() -> str:
    """Every public data set that is known, in columns for a terminal, what it expects and whom to ask below each; then any table."""
    rows = [("--dataset", "title", "images", "contents", "protocol")]
    rows += [(one.name, one.title, f"{one.images:,}", f"{one.contents or one.images:,}", _protocol(one)) for one in ADAPTERS.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, title, images, contents, protocol in rows:
        lines.append(
            f"{name:{widths[0]}}  {title:{widths[1]}}  {images:>{widths[2]}}  {contents:>{widths[3]}}  {protocol}",
        )
        if one := ADAPTERS.get(name):
            indent = "\n    "
            lines[-1] += f"{indent}--label  {f'{indent}     or  '.join(map(str, one.labels))}"
            lines[-1] += f"{indent}--root   {one.on_disk}"
            paper = one.paper_resize or "it did not use this set"
            lines[-1] += f"{indent}--resize aspect: {one.resize}; paper: {paper}{_sizes(one)}{indent}ask      {one.ask}"
    return "\n".join([*lines, "", *_TABLES])


def _protocol(one: Adapter) -> str:
    numbers = "/".join(f"{images:,}" for images in one.parts if images)
    return f"{one.protocol} ({numbers})" if numbers else one.protocol


def _sizes(one: Adapter) -> str:
    sizes = " or ".join(f"{width}x{height}" for width, height in one.sizes)
    return f"; pictures of {sizes}" if sizes else ""
