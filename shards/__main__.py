"""python -m shards build | demo | check | show: make a shard folder, once, and look at it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.check import check, describe
from shards.datasets import ADAPTERS, DataSet, read_table
from shards.manifest import Label, ShardError, Shards
from shards.writer import Settings, build, plan_build


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 an error that was explained, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


def _build(options: argparse.Namespace) -> None:
    settings = Settings(options.size, options.patches, options.seed, options.layout, options.resize, int(options.shard_mib * 2**20))
    plan = plan_build(_data_set(options), settings)
    images = sum(len(task.pictures) for task in plan.tasks)
    print(
        f"{plan.data_set.name}: {images:,} images -> {len(plan.tasks)} shards in {options.out}, layout {plan.layout.name}, {options.workers} worker(s)"
    )
    print(describe(build(plan, options.out, options.workers)))


def _data_set(options: argparse.Namespace) -> DataSet:
    if options.dataset:
        if options.table or options.images or options.range or options.lower_is_better:
            raise ShardError("--dataset brings its own table and scale: leave out --table, --images, --range and --lower-is-better")
        if not options.root:
            raise ShardError(f"--dataset {options.dataset} needs --root, the folder it was unpacked to")
        return ADAPTERS[options.dataset](options.root)
    if not options.table or not options.images:
        raise ShardError("name the data: --table scores.csv --images DIR, or --dataset NAME --root DIR")
    low, high = options.range or (None, None)
    if low is not None and low >= high:
        raise ShardError(f"--range {low:g} {high:g}: write the lower end of the scale first")
    label = Label(options.label, low, high, not options.lower_is_better)
    return read_table(options.table, options.images, options.name, label)


def _demo(options: argparse.Namespace) -> None:
    from shards.demo import make_demo  # its photographs need the extra named demo

    make_demo(options.out, options.workers)


def _check(options: argparse.Namespace) -> None:
    print(describe(check(options.folder)))
    print("every byte is as it was written")


def _show(options: argparse.Namespace) -> None:
    print(describe(Shards(options.folder)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shards", description="Photographs and opinions in, WebDataset shards with fixed lossless patches out."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    workers = {"type": int, "default": len(os.sched_getaffinity(0)), "help": "processes (default: one per core this process may use)"}

    command = commands.add_parser(
        "build", help="write shards from a score table or a data set folder", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(run=_build)
    source = command.add_argument_group("the data, either a table ...")
    source.add_argument("--table", type=Path, help="csv with the columns image and score (or mos), and optionally std, group, split")
    source.add_argument("--images", type=Path, help="the folder that the table's image column is relative to")
    source.add_argument("--name", help="the data set's name (default: the table's folder)")
    source.add_argument("--label", default="MOS", help="what the score is called in every report")
    source.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="the ends of the score's scale, such as 1 5")
    source.add_argument("--lower-is-better", action="store_true", help="the score is a DMOS or the like")
    known = command.add_argument_group("... or a data set as it is distributed")
    known.add_argument("--dataset", choices=sorted(ADAPTERS), help="its name")
    known.add_argument("--root", type=Path, help="the folder it was unpacked to")
    command.add_argument("--out", type=Path, required=True, help="the shard folder to write")
    command.add_argument("--patches", type=int, default=Settings.patches, help="patches per image")
    command.add_argument("--size", type=int, default=Settings.patch_size, help="width and height of a patch in pixels")
    command.add_argument("--seed", type=int, default=Settings.seed, help="of the patch boxes and of the splits")
    command.add_argument(
        "--layout",
        choices=("auto", "canvas", "patches"),
        default=Settings.layout,
        help="store images once, or patch by patch; auto takes the smaller",
    )
    command.add_argument("--resize", help="none, exact:WIDTHxHEIGHT or short:PIXELS (default: the data set's rule; none for a table)")
    command.add_argument("--shard-mib", type=float, default=Settings.shard_bytes / 2**20, help="size of a shard, about")
    command.add_argument("--workers", **workers)

    command = commands.add_parser("demo", help="write the built-in photographs with computed pseudo-opinions (not human ratings)")
    command.set_defaults(run=_demo)
    command.add_argument("--out", type=Path, required=True, help="the folder to write")
    command.add_argument("--workers", **workers)

    command = commands.add_parser("check", help="read a shard folder from end to end and verify every byte")
    command.set_defaults(run=_check)
    command.add_argument("folder", type=Path)

    command = commands.add_parser("show", help="say what a shard folder holds")
    command.set_defaults(run=_show)
    command.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
