"""Pictures that somebody distorted, restored or generated: all versions of a reference, or of a prompt, stay together in a split."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from shards.adapters.adapter import Adapter, Found
from shards.datasets import each, image_id, row_of
from shards.folders import PictureFinder, Root
from shards.manifest import Label, ShardError
from shards.rows import Row
from shards.tables import Record, mat_variables, number_in, read_csv, read_list, read_mat, read_mat_texts, read_sheet

_LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}  # in the order of the vectors
_CSIQ_TYPES = {"noise": "AWGN", "jpeg": "JPEG", "jpeg 2000": "jpeg2000", "blur": "BLUR", "fnoise": "fnoise", "contrast": "contrast"}


def _live(root: Root, _: str) -> Found:
    """Vectors over img1.bmp, img2.bmp ... of five folders; where orgs is 1 the picture is a reference, which nobody rated as distorted.

    Beside dmos_new, the public file holds the deviations in dmos_std; copies without them are read, too.
    """
    table, references_file = root.part("dmos_realigned.mat"), root.part("refnames_all.mat")
    pictures = PictureFinder(root.part("jp2k").parent)
    scores, originals = read_mat(table, "dmos_new"), read_mat(table, "orgs")
    references = read_mat_texts(references_file, "refnames_all")
    names = [f"{folder}/img{number}.bmp" for folder, count in _LIVE_FOLDERS.items() for number in range(1, count + 1)]
    if not len(names) == len(scores) == len(originals) == len(references):
        raise ShardError(
            f"{table}: expected {len(names)} entries in dmos_new and orgs, and in refnames_all of {references_file.name}; "
            f"found {len(scores)}, {len(originals)} and {len(references)}; take the files of release 2"
        )
    has_stds = "dmos_std" in mat_variables(table)
    stds = read_mat(table, "dmos_std") if has_stds else [None] * len(names)
    if len(stds) != len(names):
        raise ShardError(f"{table}: expected {len(names)} entries in dmos_std, found {len(stds)}; take the file of release 2")

    def row(entry: tuple[int, str, Any, Any, str, Any]) -> Row:
        number, name, score, std, reference, _ = entry
        where = f"{table}, entry {number}"
        deviation = number_in(std, f"{where} of dmos_std") if has_stds else None
        return Row(image_id(name, where), pictures.find(name), number_in(score, where), deviation, reference, None, where)

    entries = zip(range(1, len(names) + 1), names, scores, stds, references, originals, strict=True)
    return table, each((entry for entry in entries if entry[-1] != 1), row)


def _csiq(root: Root, _: str) -> Found:
    """The Excel sheet, or the text list "1600.AWGN.1.png 0.062"; a picture lies in the folder of its distortion, or all in one."""
    table = root.part("csiq.DMOS.xlsx", "csiq.DMOS.csv", "csiq_label.txt")
    pictures = PictureFinder(root.part("dst_imgs", "dst_imgs_all"))
    listed = table.suffix == ".txt"

    def row(record: Record) -> Row:
        if listed:
            name, std = record["name"], None
        elif (distortion := _CSIQ_TYPES.get(record["dst_type"])) is None:
            raise ShardError(
                f"{record.where}, column dst_type: '{record['dst_type']}' is none of {', '.join(_CSIQ_TYPES)}; download the table again"
            )
        else:
            name, std = f"{record['image']}.{distortion}.{record['dst_lev']}.png", record.number("dmos_std")
        if name.count(".") != 3:
            raise ShardError(f"{record.where}: '{name}' is not called reference.distortion.level.png; download the list again")
        reference, distortion, *_rest = name.split(".")
        alone, in_folder = pictures.find(name), pictures.find(f"{distortion.lower()}/{name}")
        file = alone if alone.is_file() else in_folder
        return Row(image_id(name, record.where), file, record.number("dmos"), std, reference, None, record.where)

    columns = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
    return table, each(read_list(table, ("name", "dmos")) if listed else read_sheet(table, columns, "all_by_image"), row)


def _tid2013(root: Root, _: str) -> Found:
    """Names are iRR_DD_L.bmp, RR the reference, and the disk writes some in capitals.

    mos_std.txt is left alone: its 0.13 for a mean of 5.51 is no deviation of single ratings, which are whole numbers and so lie 0.49 apart
    from that mean at least, but the error of the mean.
    """
    table, pictures = root.part("mos_with_names.txt"), PictureFinder(root.part("distorted_images"))

    def row(record: Record) -> Row:
        return row_of(record, "name", "mos", pictures, group=record["name"].split("_")[0].lower())

    return table, each(read_list(table, ("mos", "name")), row)


def _kadid10k(root: Root, _: str) -> Found:
    """The column called dmos rises with quality, and the one called var is the standard deviation of the single ratings."""
    table, pictures = root.part("dmos.csv"), PictureFinder(root.part("images"))

    def row(record: Record) -> Row:
        # I01_01_01 has the mean 4.57 of 30 ratings from 1 to 5, so their sum is 137, and the var 0.496. Whole ratings whose squares add
        # up to 633 deviate by sqrt(633/30 - (137/30)^2) = 0.4955. As a variance none give it: the sum of squares is odd as 137 is,
        # and 639 makes 0.446, 641 makes 0.512. The doctor counts it on the file at hand.
        return row_of(record, "dist_img", "dmos", pictures, std=record.number("var"), group=record["ref_img"])

    return table, each(read_csv(table, ("dist_img", "ref_img", "dmos", "var")), row)


def _pipal(root: Root, _: str) -> Found:
    """A list per reference; the pictures come in several archives, whose folders lie side by side or are merged into one."""
    table, first = root.part("Train_Label"), root.part("Train_Dist", "Distortion_1", "Dist_Imgs")
    folders = [PictureFinder(path) for path in sorted(first.parent.iterdir()) if path.is_dir() and "dist" in path.name.lower()]
    lists = sorted(file for file in table.glob("*.txt") if not file.name.startswith("."))  # on a Mac each has a ._A0000.txt
    if not lists:
        raise ShardError(f"{table}: expected a list A0000.txt ... per reference in it, found none; unpack the labels again")

    def row(record: Record) -> Row:
        name = record["name"]
        pictures = next((folder for folder in folders if folder.find(name).is_file()), folders[0])
        return row_of(record, "name", "elo", pictures, group=PurePosixPath(name).stem.split("_")[0])

    return table, each((record for file in lists for record in read_list(file, ("name", "elo"))), row)


def _agiqa3k(root: Root, _: str) -> Found:
    """mos_align says how well a picture shows its prompt, not how good it is, and is left aside."""
    table = root.part("data.csv")
    pictures = PictureFinder(
        next((path for path in sorted(table.parent.iterdir()) if path.is_dir() and "agiqa" in path.name.lower()), table.parent)
    )

    def row(record: Record) -> Row:
        return row_of(record, "name", "mos_quality", pictures, std=record.number("std_quality"), group=record["prompt"])

    return table, each(read_csv(table, ("name", "prompt", "mos_quality", "std_quality")), row)


SYNTHETIC = (
    Adapter(
        "live",
        "LIVE (release 2)",
        _live,
        (Label("DMOS", -2.65, 111.78, False),),  # realigned: as seen, rounded outwards, since the scale itself has no ends
        images=779,
        contents=29,
        on_disk="dmos_realigned.mat, refnames_all.mat, jp2k/, jpeg/, wn/, gblur/, fastfading/",
        protocol="80/20 x 10 by reference",
        ask="https://live.ece.utexas.edu/research/quality/subjective.htm",
        paper_resize="none",
    ),
    Adapter(
        "csiq",
        "CSIQ",
        _csiq,
        (Label("DMOS", 0.0, 1.0, False),),
        images=866,
        contents=30,
        on_disk="csiq.DMOS.xlsx (or .csv) or csiq_label.txt, dst_imgs/",
        protocol="80/20 x 10 by reference",
        ask="https://s2.smu.edu/~eclarson/csiq.html",
        paper_resize="none",
        sizes=((512, 512),),
    ),
    Adapter(
        "tid2013",
        "TID2013",
        _tid2013,
        (Label("MOS", 0.0, 9.0, True),),
        images=3_000,
        contents=25,
        on_disk="mos_with_names.txt, distorted_images/",
        protocol="80/20 x 10 by reference",
        ask="https://www.ponomarenko.info/tid2013.htm",
        paper_resize="none",
        sizes=((512, 384),),
    ),
    Adapter(
        "kadid10k",
        "KADID-10k",
        _kadid10k,
        (Label("DMOS", 1.0, 5.0, True),),
        images=10_125,
        contents=81,
        on_disk="dmos.csv, images/",
        protocol="80/20 x 10 by reference",
        ask="https://database.mmsp-kn.de/kadid-10k-database.html",
        sizes=((512, 384),),
    ),
    Adapter(
        "pipal",
        "PIPAL, training part",
        _pipal,
        (Label("Elo", 916.6, 1836.1, True),),  # as seen, rounded outwards: such ratings have no ends
        images=23_200,
        contents=200,
        on_disk="Train_Label/A0000.txt ..., and Distortion_1/ ... Distortion_4/, Train_Dist/ or Dist_Imgs/",
        protocol="80/20 x 10 by reference",
        ask="https://github.com/HaomingCai/PIPAL-dataset",
        sizes=((288, 288),),
    ),
    Adapter(
        "agiqa3k",
        "AGIQA-3K",
        _agiqa3k,
        (Label("mos_quality", 0.0, 5.0, True),),
        images=2_982,
        contents=300,
        on_disk="data.csv, and the pictures beside it or in AGIQA-3K/",
        protocol="80/20 x 10 by prompt",
        ask="https://github.com/lcysyzxdxc/AGIQA-3k-Database",
    ),
)
