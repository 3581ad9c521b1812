"""Photographs as people took them: every image is its own content, and what went wrong went wrong in the camera."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from shards import flive_table
from shards.adapters.adapter import Adapter, Found
from shards.datasets import OtherTableError, each, faults_in, image_id, row_of
from shards.folders import PictureFinder, Root
from shards.manifest import Label, ShardError
from shards.rows import Row
from shards.tables import Record, number_in, read_csv, read_mat, read_mat_texts, read_places, read_sheet


def _koniq10k(root: Root, label: str) -> Found:
    """SD is of the ratings from 1 to 5, in both tables, so it belongs to the label MOS alone."""
    scores, sets = root.part("koniq10k_scores_and_distributions.csv"), root.part("koniq10k_distributions_sets.csv")
    pictures = PictureFinder(root.part("1024x768", "512x384"))
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
    pictures = PictureFinder(root.part("Images"))
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
    pictures = PictureFinder(root.part("TestImage"))
    return table, each(read_sheet(table, ("Image name", "MOS")), lambda record: row_of(record, "Image name", "MOS", pictures))


def _bid(root: Root, _: str) -> Found:
    """Columns by place: the number of the image, then its grade."""
    table = root.part("DatabaseGrades.xlsx", "DatabaseGrades.csv", "DatabaseGrades.xls")
    pictures = PictureFinder(root.part("ImageDatabase", "images", "DatabaseImage0001.JPG"))
    if pictures.folder.is_file():  # the pictures lie beside the table
        pictures = PictureFinder(pictures.folder.parent)
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
    """Opinions from the makers' tables, or else from pyiqa's; so the parts, but for a val that only pyiqa's tells of."""
    opinions = root.part("labels_patch.csv" if patches else "labels_image.csv", flive_table.NAME)
    images = root.part("labels_image.csv", flive_table.NAME)
    known = set[str]()
    faults = faults_in(_flive_records(images, False), lambda record: known.add(flive_table.content_of(record[_flive_name(record)])))
    part_of, of_parts = _flive_parts(root)
    strangers = (  # the images that are meant would be trained on
        OtherTableError(f"{record.where}: '{record['name_image']}' has no row in {images.name} that can be read; unpack both again")
        for content, (_, record) in part_of.items()
        if content not in known and "name_image" in record
    )
    places = [PictureFinder(root.path / folder) for folder in (".", "database", "patches", "database/patches")]

    def row(record: Record) -> Row:
        name = _flive_name(record)
        folder = next((place for place in places if place.find(record[name]).is_file()), places[0])
        content = flive_table.content_of(record[name])
        if content not in known:  # of which nobody knows whether it is tested
            raise ShardError(f"{record.where}: '{record[name]}' is of no picture in {images.name} that can be read; unpack both again")
        part = part_of[content][0] if content in part_of else "train"
        return row_of(record, name, "mos", folder, group=content, part=part)

    return opinions, _once(chain(each(_flive_records(opinions, patches), row), faults, of_parts, strangers))


def _once(found: Iterable[Row | ShardError]) -> Iterator[Row | ShardError]:
    """Without what was said before: a table is read for its opinions, its names and its parts, and a bad row is one each time."""
    said = set[str]()
    for one in found:
        if isinstance(one, ShardError):
            if str(one) in said:
                continue
            said.add(str(one))
        yield one


def _flive_name(record: Record) -> str:
    return flive_table.IMAGE if flive_table.IMAGE in record else "name"


def _flive_records(table: Path, patches: bool) -> Iterator[Record]:
    """Of pyiqa's table the images alone, or the patches; of the makers' all."""
    if table.name.casefold() != flive_table.NAME.casefold():
        yield from read_csv(table, ("name", "mos"))
        return
    for record in read_csv(table, (flive_table.IMAGE, "mos")):
        if flive_table.IMAGE not in record or flive_table.is_patch(record[flive_table.IMAGE]) == patches:
            yield record


def _flive_parts(root: Root) -> tuple[dict[str, tuple[str, Record]], list[OtherTableError]]:
    """The part of each content that a table puts into one, with the row that does; the others are train. And what is wrong there."""
    tested, of_pyiqa = root.optional("labels640.csv"), root.optional(flive_table.NAME)
    validation = root.optional("labels=640_padded.csv", "labels<=640_padded.csv")
    found: dict[str, tuple[str, Record]] = {}

    def state(record: Record, column: str, part: str | None) -> None:
        content = flive_table.content_of(record[column])
        if part and (first := found.setdefault(content, (part, record)))[0] != part:
            raise ShardError(f"{record.where}: '{record[column]}' is in {part}, and in {first[0]} by {first[1].where}; unpack both again")

    if of_pyiqa and not (tested and validation):
        table = read_csv(of_pyiqa, (flive_table.IMAGE,))
        return found, faults_in(table, lambda record: state(record, flive_table.IMAGE, flive_table.part_of(record)))
    faults = faults_in(read_csv(root.part("labels640.csv"), ("name_image",)), lambda record: state(record, "name_image", "test"))
    if validation:
        rows = read_csv(validation, ("name_image", "is_valid"))
        faults += faults_in(rows, lambda record: state(record, "name_image", "val" if _is_valid(record) else None))
    return found, faults


def _is_valid(record: Record) -> bool:
    if (said := record["is_valid"]).casefold() not in ("true", "false"):
        raise ShardError(f"{record.where}, column is_valid: '{said}' is neither True nor False; download the table again")
    return said.casefold() == "true"


def _uhd_iqa(root: Root, _: str) -> Found:
    table = root.part("uhd-iqa-metadata.csv")
    folders = {part: PictureFinder(root.part(part)) for part in ("training", "validation", "test")}

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
