"""Is this cluster fit for the run? Asked on all ranks, started as the training is; judged in `diagnosis`, told by rank 0.

Each rank first examines its node by itself: shards, GPU, precision, speed. Every question has a time limit, and whatever it
raises becomes part of the rank's report, so that one broken node is named and the others are still examined. Then all look
together at the run folder, at their clocks and at the network: that one last, because who hangs there can only be given up.

Nothing is trained and nothing stays behind, but for shards from afar: what was read of them is in the node's cache.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import signal
import socket
import statistics
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

import dist_train
import shards
from dist_train import ranks
from dist_train.collection import Collection, open_collection
from dist_train.config import Config
from dist_train.device import FIRST_WITH_TF32, HALF, device_of, fix_arithmetic, refuse_without_gpu
from dist_train.diagnosis import BUCKET, Facts, Gpu, Reading, Report, as_json, as_text, is_fit, judge
from dist_train.errors import ConfigError, TrainingError
from dist_train.launch import refuse_another_world
from dist_train.model_folder import build_model
from dist_train.plan import Plan, make_plan
from dist_train.whole_files import write_text
from shards.manifest import BUILD_AGAIN, ShardError
from shards.remote import redacted

PACKAGES = ("torch", "timm", "accelerate", "webdataset", "numpy")
IN_HARDWARE = {"tf32": FIRST_WITH_TF32, "bf16": (8, 0), "fp16": (7, 0)}  # from which compute capability on
IMAGES, IMAGES_FROM_AFAR = 32, 1  # that a rank reads of each data set: from afar a whole shard comes into the cache for one
IMAGES_ON_A_CPU = 2  # that the model computes at once; a GPU takes its whole micro-batch, and so shows whether that fits
BUDGET = 5.0  # seconds for which the work of a step is repeated
SHORT, LONG = 20.0, 100.0  # seconds for an answer; LONG to read shards and to build models. All together less than ranks.TIMEOUT
TOKEN_SECONDS = 10.0  # in which a new file must show on the other nodes; NFS may remember for a while that there was none
SUMS, SMALL_SUMS = 5, 50

T = TypeVar("T")


@dataclass
class Examination:
    """What a rank is asked, and why a question had no answer."""

    device: torch.device
    failures: dict[str, str] = field(default_factory=dict)

    def ask(self, name: str, question: Callable[[], T], limit: float = SHORT) -> T | None:
        """The answer; None when it takes more than `limit` seconds or raises, and then `failures` says why under `name`.

        It is asked in a thread, because a file server that is gone holds whoever reads there for ever.
        """
        answers: list[T] = []
        reasons: list[str] = []

        def answer() -> None:
            try:
                if self.device.type == "cuda" and self.device.index < torch.cuda.device_count():
                    torch.cuda.set_device(self.device)  # each thread has its own
                answers.append(question())
            except (ConfigError, ShardError, TrainingError) as error:
                reasons.append(redacted(str(error)))
            except Exception as error:
                reasons.append(redacted(f"{type(error).__name__}: {error}"))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        thread.join(limit)
        if answers:
            return answers[0]
        self.failures[name] = reasons[0] if reasons else f"no answer within {limit:g} s; see whether a disk or a server hangs there"
        return None


def examine(config: Config, patience: float = 120.0, json_file: str | None = None) -> bool:
    """Examines the cluster, started by every rank, and says on all whether it is fit. Rank 0 prints what was found.

    `patience` is for how many seconds the ranks wait for each other: to come, and at the network. `json_file` also gets it as
    JSON, which is printed instead of the table for '-'.
    Raises TrainingError when not all ranks come, ConfigError when another number of processes was asked for.
    """
    with _ended_by_sigterm():
        ranks.join(patience)
        refuse_another_world(ranks.world(), config.run.processes)
        fix_arithmetic(config.run.precision)
        one = Examination(device_of(config))
        collection = one.ask("shards", lambda: open_collection(config.data, config.stop.select_on), LONG)
        reading = one.ask("shards", lambda: read_shards(collection), LONG) if collection else None
        plan = one.ask("plan", lambda: make_plan(config, ranks.world()), LONG) if collection else None
        gpu = one.ask("GPUs", lambda: gpu_of(one.device)) if one.device.type == "cuda" else None
        if config.run.precision != "no":
            one.ask("precision", lambda: multiply(one.device, config.run.precision))
        seconds = one.ask("speed", lambda: seconds_of_work(plan, one.device), LONG) if plan else None
        found = one.ask("versions", versions)
        look_at_folder(config.run.folder.absolute(), one)
        facts = facts_of(config, plan, one) if ranks.is_first() else Facts(config.run.device, config.run.precision)
        reports = ranks.gather_first(Report(ranks.rank(), platform.node(), found, gpu, reading, seconds, one.failures))

        def give_up(why: str) -> NoReturn:
            """The last word of a rank whose network does not answer: nothing more can be agreed on."""
            if ranks.is_first():
                _tell([replace(reports[0], failures={**reports[0].failures, "all-reduce": why}), *reports[1:]], facts, json_file)
                sys.stdout.flush()
            else:
                time.sleep(patience)  # a launcher would end rank 0 with us, before it has spoken
            os._exit(1)

        with _or_give_up(patience / 2, give_up):
            facts = look_together(facts, reports, plan, one.device)
            fit = ranks.announce(_tell(reports, facts, json_file) if ranks.is_first() else False)
            ranks.disconnect()
    return fit


def versions() -> dict[str, str]:
    """Of everything that decides whether two nodes compute the same."""
    found = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found | {"dist_train": sources_digest()}


def sources_digest() -> str:
    """A short name for exactly these sources of dist_train and shards."""
    digest = hashlib.sha256()
    for package in (dist_train, shards):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def gpu_of(device: torch.device) -> Gpu:
    """The GPU of this rank; raises what CUDA does when there is none of that number."""
    about = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    native = tuple(name for name, needed in IN_HARDWARE.items() if torch.version.hip or (about.major, about.minor) >= needed)
    return Gpu(about.name, str(about.uuid), total, free, _driver(), native)


def _driver() -> str:
    """The version of NVIDIA's driver, which is the same in a container; the whole line where it has another form."""
    path = Path("/proc/driver/nvidia/version")
    line = path.read_text().partition("\n")[0] if path.is_file() else "not known"
    return next((word for word in line.split() if word[0].isdigit() and "." in word), line)


def multiply(device: torch.device, precision: str) -> None:
    """Two matrices in that precision, as the training would.

    Raises TrainingError when that is not what comes out, ConfigError when it needs a GPU that this rank has not.
    """
    if device.type == "cpu":
        refuse_without_gpu(precision, "this rank has none")
    one = torch.eye(256, device=device)
    with torch.autocast(device.type, dtype=HALF.get(precision), enabled=precision in HALF):
        product = one @ one
    if product.dtype != HALF.get(precision, torch.float32) or not torch.equal(product.float(), one):
        raise TrainingError(f"a product of matrices in {precision} came out wrong, as {product.dtype}; leave that node out")


def read_shards(collection: Collection) -> Reading:
    """Reads and verifies some images of every data set, other ones on every rank, and both ends of every shard on every node.

    That every shard has its length was verified when the folder was opened; from afar the ranks share that work, and it is all that
    is known of a shard of which no image is read. Raises ShardError for the first image that is bad, or all shards with a bad end.
    """
    images, read, ends = 0, 0, 0
    folders = [member.shards for member in collection.members]
    end_of_ends = time.monotonic() + LONG / 3
    for opened in folders:
        if opened.remote:
            for record in opened.files[ranks.rank() :: ranks.world()]:
                opened.remote.refuse_other_length(record)
        else:
            ends += read_ends([opened.path(record["file"]) for record in opened.files], end_of_ends)
    started = time.perf_counter()
    for opened in folders:
        wanted = (IMAGES_FROM_AFAR if opened.remote else IMAGES) * ranks.world()
        spread = np.unique(np.linspace(0, len(opened) - 1, wanted).astype(int))
        for image in spread[ranks.rank() % len(spread) :: ranks.world()]:
            read += opened.read_patches(int(image), range(opened.layout.patches)).nbytes
            images += 1
    seconds = time.perf_counter() - started
    fingerprint = "+".join(f"{member.shards.fingerprint}/{member.split_fingerprint()}" for member in collection.members)
    number, near = (sum(len(opened.files) for opened in some) for some in (folders, [opened for opened in folders if not opened.remote]))
    total = sum(record["bytes"] for opened in folders for record in opened.files)
    return Reading(fingerprint, number, total, images, read, seconds, near, ends)


def read_ends(shards: Sequence[Path], end: float) -> int:
    """How many of these shards this rank could open and read the first and the last block of, when the ranks of its node share them.

    Stops at the time `end`. Raises ShardError when some cannot be read there, or are no tar files there.
    """
    own, ranks_here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    number, bad = 0, []
    for path in shards[own::ranks_here]:
        if time.monotonic() > end:
            break
        try:
            with path.open("rb", buffering=0) as file:
                tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
                file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
                if any(file.read(tarfile.BLOCKSIZE)):
                    raise tarfile.HeaderError("no end")
        except (OSError, tarfile.HeaderError) as error:
            bad.append(f"{path}: its first and its last block are not those of a shard ({error})")
        number += 1
    if bad:
        others = f"; so it is with {len(bad) - 1} others here" if len(bad) > 1 else ""
        raise ShardError(f"{bad[0]}{others}; delete them and {BUILD_AGAIN}")
    return number


def _images_at_once(plan: Plan, device: torch.device) -> int:
    return plan.micro_batch if device.type == "cuda" else min(plan.micro_batch, IMAGES_ON_A_CPU)


def seconds_of_work(plan: Plan, device: torch.device) -> float:
    """Seconds of the model's forward and backward pass over some images, in the median of several, while all ranks do the same."""
    config, size = plan.config, plan.collection.patch_size
    model = build_model(config, size, plan.output_scale).to(device).to(memory_format=torch.channels_last).train()
    number = _images_at_once(plan, device) * config.data.patches_per_image
    patches = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, device=device)
    chances = torch.ones(number, model.num_chances, device=device)
    kind = HALF.get(config.run.precision)

    def once() -> float:
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            scores: Tensor = model(patches, chances)
        scores.sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()  # the first one also chooses kernels and finds memory
    end, taken = time.monotonic() + BUDGET, [once()]
    while time.monotonic() < end and len(taken) < 20:
        taken.append(once())
    return statistics.median(taken)


def look_at_folder(folder: Path, one: Examination) -> None:
    """Whether what rank 0 writes into the run folder is there on every rank. What it writes is removed again. A collective.

    While the folder is not there, the nearest one above it that is stands for it, on all ranks as many levels above.
    """

    def leave() -> tuple[int, str]:
        places = [folder, *folder.parents]
        level = next(number for number, place in enumerate(places) if place.is_dir())
        name = f".doctor-{secrets.token_hex(8)}"
        (places[level] / name).touch(exist_ok=False)
        return level, name

    def look(level: int, name: str) -> None:
        path = [folder, *folder.parents][level] / name
        end = time.monotonic() + TOKEN_SECONDS
        while not path.exists():
            if time.monotonic() > end:
                raise TrainingError(
                    f"{path.parent}: is not the folder that rank 0 writes to; run.folder must be on a file system that all nodes share"
                )
            time.sleep(0.2)

    left = one.ask("run folder", leave) if ranks.is_first() else None
    try:
        left = ranks.announce(left)
        if left is not None:
            level, name = left
            one.ask("run folder", lambda: look(level, name))
        ranks.agree(False)  # all have looked
    finally:
        if ranks.is_first() and left is not None:
            ([folder, *folder.parents][left[0]] / left[1]).unlink(missing_ok=True)


def facts_of(config: Config, plan: Plan | None, one: Examination) -> Facts:
    """What rank 0 knows for all, but for what the network will tell."""
    folder = config.run.folder.absolute()
    host = os.environ.get("MASTER_ADDR", "") if ranks.world() > 1 else ""
    addresses = one.ask("meeting", lambda: sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None)})) if host else None
    facts = Facts(config.run.device, config.run.precision, folder=str(folder), meeting=host, addresses=addresses or ())
    if plan is None:
        return facts
    images, shown = _images_at_once(plan, one.device), config.data.patches_per_image
    return replace(
        facts,
        plan=f"each rank takes {plan.share} images a step, {plan.micro_batch} at a time; {plan.num_parameters:,} parameters",
        work=f"forward and backward pass over {images} x {shown} patches",
        folder_bytes=bytes_of_checkpoints(plan),
        free_bytes=one.ask("disk", lambda: free_bytes(folder)),
    )


def bytes_of_checkpoints(plan: Plan) -> int:
    """What the run folder holds at most: save.keep checkpoints and the next one, each with Adam's moments, and the best model."""
    config = plan.config
    with torch.device("meta"):  # shapes without memory
        model = build_model(config, plan.collection.patch_size, (0.0, 100.0))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    moments = 2 * sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    kinds = 1 if config.ema.decay is None else 2  # of weights: the averaged ones are kept, too
    total: int = (config.save.keep + 1) * (kinds * weights + moments) + kinds * weights
    return total


def free_bytes(folder: Path) -> int:
    """Room for a run in `folder`: what is free there, and what checkpoints of its own take already."""
    taken: int = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    return taken + int(shutil.disk_usage(place).free)


def look_together(facts: Facts, reports: list[Report], plan: Plan | None, device: torch.device) -> Facts:
    """The clocks, and the network where all ranks have a GPU or none has. What rank 0 knows then. A collective."""
    facts = replace(facts, clocks=ranks.compare_clocks())
    numbers = ranks.announce(plan.num_parameters if plan else BUCKET // 4)
    if ranks.world() == 1 or not ranks.announce(len({report.gpu is None for report in reports}) == 1):
        return facts
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of what the model took
        torch.cuda.set_device(device)
    sums, small = ranks.time_all_reduces([(numbers, SUMS), (1, SMALL_SUMS)], device)
    return replace(facts, summed_bytes=4 * numbers, sum_seconds=statistics.median(sums), small_seconds=statistics.median(small))


def _tell(reports: list[Report], facts: Facts, json_file: str | None) -> bool:
    checks = judge(reports, facts)
    said = as_json(reports, facts, checks)
    print(said if json_file == "-" else as_text(checks), flush=True)
    if json_file not in (None, "-"):
        try:
            write_text(Path(str(json_file)), said + "\n")
        except OSError as error:
            raise ConfigError(f"--json {json_file}: cannot be written ({error.strerror}); name another file") from error
    return is_fit(checks)


@contextmanager
def _or_give_up(limit: float, give_up: Callable[[str], NoReturn]) -> Iterator[None]:
    """Gives up when what is done within fails, or has not ended after `limit` seconds."""
    late = f"the ranks did not hear from each other for {limit:g} s; see that the nodes reach each other on every port"
    timer = threading.Timer(limit, give_up, [late])
    timer.daemon = True
    timer.start()
    try:
        yield
    except (RuntimeError, OSError) as error:
        give_up(redacted(f"{type(error).__name__}: {error}"))
    finally:
        timer.cancel()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, as from a launcher, ends this process by way of what is to be tidied up."""

    def leave(*_: object) -> NoReturn:
        sys.exit(1)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
