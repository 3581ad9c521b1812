"""The public data sets as they are distributed: one small adapter each, all ending in the same rows.

An adapter says where the pictures are, which column is the opinion, its range and direction, what must stay together
in a split (the group), the official split, and the resize rule.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shards.datasets import DataSet, Row, data_set_of, image_id, read_table
from shards.manifest import Label, ShardError
from shards.tables import number_in, part_in, read_csv


def demo(root: Path) -> DataSet:
    """The built-in photographs with computed pseudo-opinions (`python -m shards demo`)."""
    label = Label("pseudo-opinion (computed, not human)", 0.0, 100.0, True)
    return read_table(root / "scores.csv", root / "images", "demo", label)


def koniq10k(root: Path) -> DataSet:
    """KonIQ-10k: 10,073 photographs, `MOS_zscore`, official split 7,058/1,000/2,015, stored at 512x384.

    All photographs are 1024x768, so 512x384 keeps their aspect. The paper's numbers were made with 'exact:384x512'.
    """
    scores = root / "koniq10k_scores_and_distributions.csv"
    sets = root / "koniq10k_distributions_sets.csv"
    images = next((root / size for size in ("1024x768", "512x384") if (root / size).is_dir()), None)
    if images is None:
        raise ShardError(f"{root}: expected the pictures of KonIQ-10k in 1024x768/ or 512x384/; point --root at the folder that holds it")
    part_of = {record["image_name"]: record["set"] for _, record in read_csv(sets, ("image_name", "set"))}
    rows = []
    for line, record in read_csv(scores, ("image_name", "MOS_zscore")):
        name, where = record["image_name"], f"{scores}, line {line}"
        if name not in part_of:
            raise ShardError(f"{where}: '{name}' has no row in {sets.name}, which holds the official split; unpack both files again")
        opinion = number_in(record["MOS_zscore"], f"{where}, column MOS_zscore")
        part = part_in(part_of[name], f"{sets}, image {name}, column set")
        rows.append(Row(image_id(name, where), images / name, opinion, None, name, part))  # SD is of the 1-to-5 ratings
    return data_set_of("koniq10k", Label("MOS_zscore", 0.0, 100.0, True), "exact:512x384", rows, scores)


ADAPTERS: dict[str, Callable[[Path], DataSet]] = {"demo": demo, "koniq10k": koniq10k}
