"""python -m shards build | demo | check | show: make a shard folder, once, and look at it."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.adapters import ADAPTERS
from shards.check import check, describe
from shards.datasets import DataSet, read_table
from shards.manifest import Label, ShardError, Shards
from shards.plan import Settings, plan_build
from shards.writer import build


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 an error that was explained, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {options.after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _build(options: argparse.Namespace) -> None:
    settings = Settings(options.size, options.patches, options.seed, options.layout, options.resize, int(options.shard_mib * 2**20))
    plan = plan_build(_data_set(options), settings)
    print(
        f"{plan.data_set.name}: {len(plan.pictures):,} images -> {len(plan.tasks):,} shards in {options.out}, "
        f"layout {plan.layout.name}, {options.workers} worker(s)"
    )
    print(describe(build(plan, options.out, options.workers)))


def _data_set(options: argparse.Namespace) -> DataSet:
    about_a_table = ("table", "images", "name", "label", "range", "lower_is_better")
    if options.dataset:
        for name in about_a_table:
            if getattr(options, name):
                raise ShardError(f"--dataset brings its own table and scale: leave out --{name.replace('_', '-')}")
        if not options.root:
            raise ShardError(f"--dataset {options.dataset} needs --root, the folder it was unpacked to")
        return ADAPTERS[options.dataset](options.root)
    if not options.table or not options.images or options.root:
        raise ShardError("name the data: --table scores.csv --images DIR, or --dataset NAME --root DIR")
    if options.range and not -math.inf < options.range[0] < options.range[1] < math.inf:
        raise ShardError(f"--range {options.range[0]:g} {options.range[1]:g}: write the two ends of the scale, the lower one first")
    low, high = options.range or (None, None)
    label = Label(options.label or "MOS", low, high, not options.lower_is_better)
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

    command = commands.add_parser(
        "build", help="write shards from a score table or a data set folder", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(run=_build, after_interrupt="the same command goes on where this one stopped")
    source = command.add_argument_group("the data, either a table ...")
    source.add_argument("--table", type=Path, help="csv with the columns image and score (or mos), and optionally std, group, split")
    source.add_argument("--images", type=Path, help="the folder that the table's image column is relative to")
    source.add_argument("--name", help="the data set's name (default: the table's folder)")
    source.add_argument("--label", help="what the score is called in every report (default: MOS)")
    source.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="the ends of the score's scale, such as 1 5")
    source.add_argument("--lower-is-better", action="store_true", help="the score is a DMOS or the like")
    known = command.add_argument_group("... or a data set as it is distributed")
    known.add_argument("--dataset", choices=sorted(ADAPTERS), help="its name")
    known.add_argument("--root", type=Path, help="the folder it was unpacked to")
    command.add_argument("--out", type=Path, required=True, help="the shard folder to write, new or empty")
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
    command.add_argument("--shard-mib", type=_mebibytes, default=Settings.shard_bytes / 2**20, help="size of a shard, about")
    _add_workers(command)

    command = commands.add_parser("demo", help="write the built-in photographs with computed pseudo-opinions (not human ratings)")
    command.set_defaults(run=_demo, after_interrupt="the same command begins anew")
    command.add_argument("--out", type=Path, required=True, help="the folder to write")
    _add_workers(command)

    for name, run, explanation in (
        ("check", _check, "read a shard folder from end to end and verify every byte"),
        ("show", _show, "say what a shard folder holds"),
    ):
        command = commands.add_parser(name, help=explanation)
        command.set_defaults(run=run, after_interrupt="nothing was changed")
        command.add_argument("folder", type=Path)
    return parser


def _add_workers(command: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command.add_argument("--workers", type=int, default=cores, help="processes (default: one per core this process may use)")


def _mebibytes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no size of a shard")
    return value


if __name__ == "__main__":
    sys.exit(main())
