"""What ten million images cost a rank: opening the folder, its split, and an epoch's order.

    python benchmarks/ten_million.py [--folder DIR]

Makes the real files of such a folder, as a build of 25 patches per image in the canvas layout writes them (manifest, index, ids,
opinions, parts of ten rounds, the table of the first; 44,053 shards that are long enough but hold nothing), opens it in a process
of its own, and deletes it. Takes half a minute, and 2 GB of disk for that time.

Measured on 22 November 2026, on 2 cores that others used too:

    seconds                      by the clock  on a core
    opening                              0.71       0.31
    opinions                             0.08       0.04
    the split                            0.47       0.22
    ids of 1,000 images                  0.14       0.07
    an epoch's order                     1.32       0.58   goal: under 2
    1,000 steps of 96 images             0.31       0.15
    1,000 rows of the index              0.01       0.00
    peak memory: 352 MB, 34 of it before anything was opened   goal: under 500

Of the 352 MB, 210 are the opinions and the ids, which all processes of a machine share, and 80 the numbers of the training images.
Mapping the index too, instead of reading a row when it is needed, made it 1,460 MB after a thousand rows.

One argsort per pass, as it was before, took 1.2 s and 256 MB each, and kept 160 MB, in every rank and in every loader worker.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dist_train.order import Order
from shards.manifest import FORMAT, PARTS, Layout, Shards, file_sha256, fingerprint_of, manifest_sha256

IMAGES, ROUNDS, BLOCK = 10_000_000, 10, 1 << 16
WIDTH, HEIGHT = 512, 384
LAYOUT = Layout("canvas", 224, 25)
IMAGES_PER_SHARD = (128 << 20) // LAYOUT.image_bytes(WIDTH, HEIGHT)
MEMBER = LAYOUT.image_bytes(WIDTH, HEIGHT) + 4096  # its json and the headers, about
PLAN = hashlib.sha256(b"ten million").hexdigest()
ORDER = "an epoch's order"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the 2 GB go for the time of the run (default: the system's)")
    parser.add_argument("--only", choices=("make", "measure"), help=argparse.SUPPRESS)  # in the processes started below
    options = parser.parse_args()
    if options.only:
        {"make": make, "measure": measure}[options.only](options.folder)
        return
    with TemporaryDirectory(dir=options.folder) as folder:
        print(f"making {IMAGES:,} rows in {folder}", flush=True)
        for step in ("make", "measure"):  # two processes: the peak of a process counts what it was before it became itself
            subprocess.run([sys.executable, __file__, "--folder", folder, "--only", step], check=True)


def measure(folder: Path) -> None:
    """Prints what each step took, and the peak memory of this process, against the goals."""
    found, before = dict[str, tuple[float, float]](), peak()
    with timed(found, "opening"):
        shards = Shards(folder)
    with timed(found, "opinions"):
        opinions = shards.opinions
    with timed(found, "the split"):
        _, parts = shards.split("round-01")
    train = parts["train"]
    with timed(found, "ids of 1,000 images"):
        assert len({shards.ids[image] for image in train[:: len(train) // 1000]}) >= 1000
    order = Order(seed=0, num_images=IMAGES, stored_patches=25, patches_per_image=1, passes=1, global_batch=96)
    with timed(found, ORDER):  # every visit: image, patch, mirrored or not
        checked = sum(int(order.visits(first, min(first + BLOCK, IMAGES)).images.sum()) for first in range(0, IMAGES, BLOCK))
    assert checked == IMAGES * (IMAGES - 1) // 2
    steps = range(0, order.steps_per_epoch, order.steps_per_epoch // 1000)
    with timed(found, "1,000 steps of 96 images"):
        for step in steps:
            opinions[order.batch(step).images]
    with timed(found, "1,000 rows of the index"):
        for image in train[:: len(train) // 1000]:
            shards.row(int(image))
    print(f"{'seconds':<28}{'by the clock':>13}{'on a core':>11}")
    for name, (wall, core) in found.items():
        print(f"{name:<28}{wall:>13.2f}{core:>11.2f}{'   goal: under 2' if name == ORDER else ''}")
    print(f"peak memory: {peak():.0f} MB, {before:.0f} of it before anything was opened   goal: under 500")


def peak() -> float:
    """The most memory this process has held, mapped files included, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # Linux counts it in KiB


@contextmanager
def timed(found: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Notes how many seconds the block took, by the clock and on a core; they differ where others use the machine too."""
    clock, core = time.perf_counter(), time.process_time()
    yield
    found[name] = time.perf_counter() - clock, time.process_time() - core


def make(folder: Path) -> None:
    """Writes the folder. The rows are those of a build; only the pixels are missing."""
    draw = np.random.default_rng(0)
    numbers = np.arange(IMAGES)
    write(folder / "index.npy", LAYOUT.index_dtype(), (IMAGES,), lambda first, last: index_rows(numbers[first:last], draw))
    write(
        folder / "ids.npy", np.dtype("S13"), (IMAGES,), lambda first, last: np.array([b"image-%07d" % n for n in range(first, last)], "S13")
    )
    write(folder / "opinions.npy", np.dtype("<f8"), (IMAGES,), lambda first, last: draw.uniform(0, 100, last - first))
    parts = np.array([0] * 7 + [1] + [2] * 2, np.uint8)[draw.integers(0, 10, (ROUNDS, IMAGES), np.uint8)]  # 70/10/20
    np.save(folder / "parts.npy", parts)
    (folder / "splits").mkdir()
    with (folder / "splits" / "round-01.csv").open("w") as file:
        file.write("id,part\n")
        for first in range(0, IMAGES, BLOCK):
            block = enumerate(parts[0, first : first + BLOCK].tolist(), first)
            file.writelines(f"image-{number:07d},{PARTS[part]}\n" for number, part in block)
    shards = []
    for number, first in enumerate(range(0, IMAGES, IMAGES_PER_SHARD)):
        images = min(IMAGES_PER_SHARD, IMAGES - first)
        name = f"shard-{number:06d}.tar"
        with (folder / name).open("wb") as shard:
            shard.truncate(images * MEMBER)  # a hole: it has a length and takes no room
        shards.append({"file": name, "bytes": images * MEMBER, "sha256": "0" * 64, "images": images})
    manifest = {
        "format": FORMAT,
        "data_set": "ten million",
        "label": {"name": "MOS", "low": 0.0, "high": 100.0, "higher_is_better": True},
        "layout": asdict(LAYOUT),
        "resize": {"rule": "none", "filter": "bilinear"},
        "seed": 0,
        "images": IMAGES,
        "enlarged": 0,
        **{f"{name}_sha256": file_sha256(folder / f"{name}.npy") for name in ("index", "ids", "opinions", "parts")},
        "images_sha256": "0" * 64,
        "splits": {f"round-{number:02d}": "0" * 64 for number in range(1, ROUNDS + 1)}
        | {"round-01": file_sha256(folder / "splits" / "round-01.csv")},
        "shards": shards,
        "plan": PLAN,
        "versions": {},
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def index_rows(numbers: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    rows = np.zeros(len(numbers), LAYOUT.index_dtype())
    rows["shard"], place = np.divmod(numbers, IMAGES_PER_SHARD)
    rows["offset"] = place * MEMBER + 2048
    rows["height"], rows["width"], rows["lengths"] = HEIGHT, WIDTH, LAYOUT.image_bytes(WIDTH, HEIGHT)
    rows["checksums"] = draw.integers(0, 2**32, rows["checksums"].shape)
    rows["corners"][..., 0] = draw.integers(0, HEIGHT - 223, (len(rows), LAYOUT.patches))
    rows["corners"][..., 1] = draw.integers(0, WIDTH - 223, (len(rows), LAYOUT.patches))
    content, size, start = memoryview(rows.tobytes()), rows.itemsize, int(PLAN[:8], 16)
    rows["row_checksum"] = [zlib.crc32(content[k : k + size - 4], start) for k in range(0, len(content), size)]  # as row_checksum does
    return rows


def write(path: Path, dtype: np.dtype, shape: tuple[int, ...], rows: Callable[[int, int], np.ndarray]) -> None:
    with path.open("wb") as file:
        head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for first in range(0, shape[0], BLOCK):
            file.write(rows(first, min(first + BLOCK, shape[0])).tobytes())


if __name__ == "__main__":
    main()
