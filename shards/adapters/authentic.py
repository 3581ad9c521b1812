"""Photographs as people took them: every image is its own content, and what went wrong went wrong in the camera."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from shards.adapters.adapter import Adapter, Found
from shards.datasets import FLIVE_IMAGE, OtherTableError, each, faults_in, image_id, row_of
from shards.folders import Pictures, Root
from shards.manifest import PARTS, Label, ShardError
from shards.photographs import SUFFIXES
from shards.rows import Row
from shards.tables import Record, number_in, read_csv, read_mat, read_mat_texts, read_places, read_sheet

FLIVE_OF_PYIQA = "meta_info_FLIVEDataset.csv"
_OF_A_PATCH = re.compile(r"_patch_\d+\.\w+$")  # the makers append it to the whole name of the picture


def _koniq10k(root: Root, label: str) -> Found:
    """SD is of the ratings from 1 to 5, in both tables, so it belongs to the label MOS alone."""
    scores, sets = root.part("koniq10k_scores_and_distributions.csv"), root.part("koniq10k_distributions_sets.csv")
    pictures = Pictures(root.part("1024x768", "512x384"))
    sets_of: dict[str, Record] = {}

    def keep(record: Record) -> None:
        if (first := sets_of.setdefault(name := record["image_name"], record)) is not record:
            raise ShardError(f"{record.where}: '{name}' stands there a second time, first in {first.where}; unpack the file again")

    def row(record: Record) -> Row:
        official = sets_of.get(name := record["image_name"])
        if official is None:
            raise ShardError(
                f"{record.where}: '{name}' has no row in {sets.name} that can be read, and so no part; unpack both files again"
            )
        if (part := official.part("set")) is None:
            raise ShardError(f"{official.where}, column set: is empty; unpack the file again")
        std = record.number("SD") if label == "MOS" else None
        return row_of(record, "image_name", label, pictures, std=std, part=part)

    faults = faults_in(read_csv(sets, ("image_name", "set")), keep)
    return scores, chain(faults, each(read_csv(scores, ("image_name", "SD", label)), row))


def _livec(root: Root, _: str) -> Found:
    """Three vectors in one order; the seven pictures in trainingImages/ taught the raters, and every protocol drops them."""
    names_file, scores_file, stds_file = (root.part(f"Data/All{what}_release.mat") for what in ("Images", "MOS", "StdDev"))
    pictures = Pictures(root.part("Images"))
    names, scores = read_mat_texts(names_file, "AllImages_release"), read_mat(scores_file, "AllMOS_release")
    stds = read_mat(stds_file, "AllStdDev_release")
    if not len(names) == len(scores) == len(stds):
        raise ShardError(
            f"{names_file}: names {len(names)} images, but there are {len(scores)} scores and {len(stds)} deviations beside it"
        )

    def row(entry: tuple[int, str, Any, Any]) -> Row:
        number, name, score, std = entry
        where = f"{names_file}, entry {number}"
        opinion, deviation = number_in(score, f"{scores_file}, entry {number}"), number_in(std, f"{stds_file}, entry {number}")
        return Row(image_id(name, where), pictures.find(name), opinion, deviation, name, None, where)

    entries = zip(range(1, len(names) + 1), names, scores, stds, strict=True)
    return names_file, each((entry for entry in entries if not entry[1].startswith("t")), row)  # t1.bmp to t7.bmp


def _spaq(root: Root, _: str) -> Found:
    table = root.part("Annotations/MOS and Image attribute scores.xlsx", "Annotations/MOS and Image attribute scores.csv")
    pictures = Pictures(root.part("TestImage"))
    return table, each(read_sheet(table, ("Image name", "MOS")), lambda record: row_of(record, "Image name", "MOS", pictures))


def _bid(root: Root, _: str) -> Found:
    """Columns by place: the number of the image, then its grade."""
    table = root.part("DatabaseGrades.xlsx", "DatabaseGrades.csv", "DatabaseGrades.xls")
    pictures = Pictures(root.part("ImageDatabase", "images", "DatabaseImage0001.JPG"))
    if pictures.folder.is_file():  # the pictures lie beside the table
        pictures = Pictures(pictures.folder.parent)
    number, grade = columns = "number of the image", "grade"

    def row(record: Record) -> Row:
        if (value := record.number(number)) < 1 or value % 1:
            raise ShardError(f"{record.where}: '{record[number]}' is no {number}; write a whole one, as in the names of the pictures")
        name = f"DatabaseImage{int(value):04d}.JPG"
        return Row(image_id(name, record.where), pictures.find(name), record.number(grade), None, name, None, record.where)

    return table, each(read_places(table, columns), row)


def _flive(root: Root, _: str) -> Found:
    return _flive_rows(root, patches=False)


def _flive_patches(root: Root, _: str) -> Found:
    """A patch is of the content, and on the side, of the picture that it was cut from."""
    return _flive_rows(root, patches=True)


def _flive_rows(root: Root, patches: bool) -> Found:
    """From the makers' tables, or else from pyiqa's, which has images and patches with opinions and parts."""
    tests = root.part("labels640.csv", FLIVE_OF_PYIQA)
    if tests.name.casefold() == FLIVE_OF_PYIQA.casefold():
        whole = read_csv(tests, (FLIVE_IMAGE, "mos", "split"))
        rows = each(whole, _flive_row(root, FLIVE_IMAGE, lambda record, _: _numbered_part(record)))
        return tests, (row for row in rows if isinstance(row, ShardError) or bool(_OF_A_PATCH.search(row.file.name)) == patches)
    images = root.part("labels_image.csv")
    table = root.part("labels_patch.csv") if patches else images
    validation = root.optional("labels=640_padded.csv", "labels<=640_padded.csv")
    known, stated = set[str](), dict[str, tuple[str, Record]]()  # the part of each content that a table puts into one

    def state(record: Record, part: str) -> None:
        content = _flive_content(record["name_image"])
        if stated.setdefault(content, (part, record))[0] != part:
            raise ShardError(f"{record.where}: '{record['name_image']}' is in test too, by {stated[content][1].where}; unpack both again")

    faults = faults_in(read_csv(tests, ("name_image",)), lambda record: state(record, "test"))
    if validation:
        faults += faults_in(
            read_csv(validation, ("name_image", "is_valid")), lambda record: state(record, "val") if _is_valid(record) else None
        )
    others = faults_in(read_csv(images, ("name",)), lambda record: known.add(_flive_content(record["name"])))
    if patches:  # else they are told with the rows
        faults += others
    strangers = (  # the images that are meant would be trained on
        OtherTableError(f"{record.where}: '{record['name_image']}' has no row in {images.name} that can be read; unpack both again")
        for content, (_, record) in stated.items()
        if content not in known
    )
    row = _flive_row(root, "name", lambda _, content: stated[content][0] if content in stated else "train")
    return table, chain(faults, each(read_csv(table, ("name", "mos")), row), strangers)


def _flive_row(root: Root, name: str, part: Callable[[Record, str], str]) -> Callable[[Record], Row]:
    """The row of a record of any of FLIVE's tables; `part` is told the record and its content."""
    places = [Pictures(root.path / folder) for folder in (".", "database", "patches", "database/patches")]

    def row(record: Record) -> Row:
        folder = next((place for place in places if place.find(record[name]).is_file()), places[0])
        content = _flive_content(record[name])
        return row_of(record, name, "mos", folder, group=content, part=part(record, content))

    return row


def _is_valid(record: Record) -> bool:
    if (said := record["is_valid"]).casefold() not in ("true", "false"):
        raise ShardError(f"{record.where}, column is_valid: '{said}' is neither True nor False; download the table again")
    return said.casefold() == "true"


def _numbered_part(record: Record) -> str:
    """The part of a row of pyiqa's table, which numbers them."""
    if (said := record["split"]) not in ("0", "1", "2"):
        raise ShardError(f"{record.where}, column split: '{said}' is none of 0, 1 and 2, for train, val and test; download the table again")
    return PARTS[int(said)]


def _flive_content(name: str) -> str:
    """voc_emotic_ava/AVA__1.jpg and its patch patches/AVA__1.jpg_patch_2.jpg show the content AVA__1."""
    picture = _OF_A_PATCH.sub("", PurePosixPath(name).name)
    return PurePosixPath(picture).stem if PurePosixPath(picture).suffix.lower() in SUFFIXES else picture


def _uhd_iqa(root: Root, _: str) -> Found:
    table = root.part("uhd-iqa-metadata.csv")
    folders = {part: Pictures(root.part(part)) for part in ("training", "validation", "test")}

    def row(record: Record) -> Row:
        pictures = folders.get(record["set"])
        if pictures is None:
            raise ShardError(f"{record.where}, column set: '{record['set']}' is none of {', '.join(folders)}; download the table again")
        return row_of(record, "image_name", "quality_mos", pictures, part=record.part("set"))

    return table, each(read_csv(table, ("image_name", "quality_mos", "set")), row)


AUTHENTIC = (
    Adapter(
        "koniq10k",
        "KonIQ-10k",
        _koniq10k,
        (Label("MOS_zscore", 0.0, 100.0, True), Label("MOS", 1.0, 5.0, True)),
        images=10_073,
        contents=None,
        on_disk="koniq10k_scores_and_distributions.csv, koniq10k_distributions_sets.csv, 1024x768/ or 512x384/",
        protocol="official train/val/test",
        ask="https://database.mmsp-kn.de/koniq-10k-database.html",
        resize="exact:512x384",  # all photographs are 4:3
        paper_resize="exact:384x512",
        sizes=((1024, 768), (512, 384)),
        parts=(7_058, 1_000, 2_015),
    ),
    Adapter(
        "livec",
        "LIVE in the Wild",
        _livec,
        (Label("MOS", 0.0, 100.0, True),),
        images=1_162,
        contents=None,
        on_disk="Data/AllImages_release.mat, Data/AllMOS_release.mat, Data/AllStdDev_release.mat, Images/",
        protocol="80/20 x 10",
        ask="https://live.ece.utexas.edu/research/ChallengeDB/",
        paper_resize="none",
    ),
    Adapter(
        "spaq",
        "SPAQ",
        _spaq,
        (Label("MOS", 0.0, 100.0, True),),
        images=11_125,
        contents=None,
        on_disk="Annotations/MOS and Image attribute scores.xlsx (or .csv), TestImage/",
        protocol="80/20 x 10",
        ask="https://github.com/h4nwei/SPAQ",
        resize="short:512",
    ),
    Adapter(
        "bid",
        "BID",
        _bid,
        (Label("grade", 0.0, 5.0, True),),
        images=586,
        contents=None,
        on_disk="DatabaseGrades.xlsx (or .csv), DatabaseImage0001.JPG ... (or those in ImageDatabase/)",
        protocol="80/20 x 10",
        ask="http://www02.smt.ufrj.br/~eduardo/ImageDatabase.htm",
        resize="short:512",
        paper_resize="exact:512x512",
    ),
    Adapter(
        "flive",
        "FLIVE (PaQ-2-PiQ), images",
        _flive,
        (Label("MOS", 0.0, 100.0, True),),
        images=39_810,
        contents=None,
        on_disk="labels_image.csv, labels640.csv, labels=640_padded.csv for the official val (or pyiqa's table), pictures",
        protocol="official train/val/test",
        ask="https://github.com/niu-haoran/FLIVE_Database; *640*.csv: https://github.com/baidut/PaQ-2-PiQ",
        parts=(37_983, 0, 1_827),
    ),
    Adapter(
        "flive_patches",
        "FLIVE (PaQ-2-PiQ), patches",
        _flive_patches,
        (Label("MOS", 0.0, 100.0, True),),
        images=119_430,
        contents=39_810,
        on_disk="labels_patch.csv and what flive needs (or pyiqa's table alone), patches (or in patches/)",
        protocol="official train/val/test",
        ask="https://github.com/niu-haoran/FLIVE_Database; *640*.csv: https://github.com/baidut/PaQ-2-PiQ",
    ),
    Adapter(
        "uhd_iqa",
        "UHD-IQA",
        _uhd_iqa,
        (Label("quality_mos", 0.0, 1.0, True),),
        images=6_073,
        contents=None,
        on_disk="uhd-iqa-metadata.csv, training/, validation/, test/",
        protocol="official train/val/test",
        ask="https://database.mmsp-kn.de/uhd-iqa-benchmark-database.html",
        resize="short:512",
        parts=(4_269, 904, 900),
    ),
)
