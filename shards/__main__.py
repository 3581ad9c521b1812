"""python -m shards list | doctor | build | split | demo | check | show | fetch: make a shard folder, once, and look at it."""

from __future__ import annotations

import argparse
import difflib
import io
import math
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from shards.adapters import ADAPTERS, adapters_as_text
from shards.check import check, describe
from shards.codecs import CODECS
from shards.datasets import DataSet, Refuse, read_table, stop_at
from shards.doctor import compare, diagnose
from shards.estimate import estimate
from shards.examination import Examination, examine
from shards.findings import BadRows, Finding, as_json, as_text, is_safe, refused
from shards.manifest import Label, ShardError, Shards
from shards.patches import resized_size
from shards.plan import Settings, plan_build
from shards.split_tables import FORMS, PRACTICE, add_splits, export_splits, read_splits, rows_of
from shards.splits import RATIO, numbered_rounds, shares_of, what_to_know
from shards.table_checks import known_by, turned_round
from shards.writer import Share, build_share, missing_shards


class UsageError(ShardError):
    """The options do not belong together: the data were not even looked at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 an error that was explained or a folder not safe to build, 130 interrupted."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):  # unless somebody chose
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a folder's name may be no text, or none that a terminal can say
    try:
        status = int(options.run(options) or 0)
        sys.stdout.flush()
        return status
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as by `| head`; nobody reads what is left, and Python would complain of it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.Error) as error:
        print(f"error: {_refusal(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {options.after_interrupt}", file=sys.stderr)
        return 130


def _refusal(error: OSError | sqlite3.Error) -> ShardError:
    """What to say when the disk refuses what nobody thought of: a folder that may not be read, a server that is gone."""
    if isinstance(error, sqlite3.Error):
        return ShardError(f"the folder for temporary files: {error}; make room there, or name another folder in SQLITE_TMPDIR")
    return ShardError(f"{error.filename or 'the disk'}: {error.strerror or error}; see that it is there and that you may use it")


def _build(options: argparse.Namespace) -> None:
    settings = Settings(
        patch_size=options.size,
        patches=options.patches,
        seed=options.seed,
        layout=options.layout,
        resize=_resize_rule(options),
        shard_bytes=int(options.shard_mib * 2**20),
        rounds=options.rounds,
        ratio=options.ratio,
        codec=options.codec,
    )
    data_set = _data_set(options)
    if turned := turned_round(data_set):
        found, expected, mend = turned
        raise UsageError(
            f"{data_set.table}: {found}; expected {expected}: {mend}, or give the set and its table other names where the opinions "
            f"were turned round"
        )
    plan = plan_build(data_set, settings)
    if options.estimate:
        print(estimate(plan, options.out))
        return
    share = f"share {options.share}, " if options.share.total > 1 else ""
    print(
        f"{plan.data_set.name}: {_counted(len(plan.pictures), 'image')} -> {_counted(len(plan.tasks), 'shard')} in {options.out}, "
        f"layout {plan.layout.name}, {share}{_counted(options.workers, 'worker')}"
    )
    print("\n".join(what_to_know(plan.data_set.rows, plan.splits)))
    if options.dataset and len(plan.pictures) != (published := ADAPTERS[options.dataset].images):
        found = f"{len(plan.pictures):,} images, and {published:,} were published"
        print(f"WARNING: {found}: `python -m shards doctor` with the same options says more")
    if doubt := plan.data_set.label.doubt(*plan.data_set.rows.opinion_range()):
        print(f"WARNING: {doubt}")
    if options.ratio != RATIO and "official" in plan.splits and not options.rounds:
        print(f"--ratio {options.ratio} changes nothing: beside an official split there are rounds only with --rounds N")
    shards = build_share(plan, options.out, options.share, options.workers)
    if shards is None:
        missing = _counted(missing_shards(plan, options.out), "shard")
        print(f"this share is written; {missing} of other shares to come, and whoever writes the last one finishes the folder")
    else:
        print(describe(shards))


def _data_set(options: argparse.Namespace, refuse: Refuse = stop_at) -> DataSet:
    about_a_table = ("table", "images", "name", "range", "lower_is_better", "higher_is_better")
    if options.dataset:
        for name in about_a_table:
            if getattr(options, name):
                raise UsageError(f"--dataset brings its own table and scale: leave out --{name.replace('_', '-')}")
        if not options.root:
            raise UsageError(f"--dataset {options.dataset} needs --root, the folder it was unpacked to")
        adapter = ADAPTERS[options.dataset]
        return adapter.read(options.root, options.label or adapter.labels[0].name, refuse)
    if options.root:
        raise UsageError(f"--root {options.root} goes with --dataset NAME, one of `python -m shards list`; a table takes --images DIR")
    if not options.table and not options.images:
        raise UsageError("name the data: --table scores.csv --images DIR, or --dataset NAME --root DIR")
    if not options.table:
        raise UsageError(f"--images {options.images} needs --table FILE, which says what people thought of the pictures")
    if not options.images:
        raise UsageError(f"--table {options.table} needs --images DIR, the folder that its image column is relative to")
    if options.range and not -math.inf < options.range[0] < options.range[1] < math.inf:
        raise UsageError(f"--range {options.range[0]:g} {options.range[1]:g}: write the two ends of the scale, the lower one first")
    low, high = options.range or (None, None)
    label = Label(options.label or "MOS", low, high, not options.lower_is_better)
    direction = options.higher_is_better
    return read_table(options.table, options.images, options.name, label, direction_is_stated=direction, refuse=refuse)


def _resize_rule(options: argparse.Namespace) -> str | None:
    """The rule to store by; None is the data set's own, which keeps the aspect."""
    if options.resize != "paper":
        return None if options.resize == "aspect" else str(options.resize)
    if not options.dataset:
        raise UsageError("--resize paper: there is no paper's rule for a table of your own; write none, exact:WIDTHxHEIGHT or short:PIXELS")
    adapter = ADAPTERS[options.dataset]
    if adapter.paper_resize is None:
        raise UsageError(
            f"--resize paper: the HyperIQA paper did not use {adapter.title}; leave it out for {adapter.resize}, or write a rule"
        )
    return adapter.paper_resize


def _doctor(options: argparse.Namespace) -> int:
    name = options.dataset or options.name or str(options.table)
    bad = BadRows()
    findings: list[Finding] = []
    one: Examination | None = None
    try:
        rule, readers = _resize_rule(options), [_reader(against) for against in options.against]
        _refuse_nonsense(rule, options.size)
        with _going_on(findings):
            data_set = _data_set(options, bad.add)
            name = data_set.name
            one = examine(replace(data_set, left_out=bad.images), options.workers, options.quick)
            findings += diagnose(one, options.size, rule, options.ratio)
        for read in readers if one else ():
            with _going_on(findings):
                findings += compare(one, examine(read(one.data_set.label), options.workers, options.quick))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = bad.findings(options.root or options.table.parent) + findings
    print((as_json if options.json else as_text)(name, findings))
    return 0 if is_safe(findings) else 1


@contextmanager
def _going_on(findings: list[Finding]) -> Iterator[None]:
    """What ends the reading of a data set is one finding more."""
    try:
        yield
    except UsageError:
        raise
    except ShardError as error:
        findings.append(refused(error))
    except (OSError, sqlite3.Error) as error:
        findings.append(refused(_refusal(error)))


def _refuse_nonsense(rule: str | None, patch_size: int) -> None:
    if patch_size < 8:
        raise UsageError(f"--size {patch_size}: a patch is at least 8 pixels wide")
    try:
        resized_size(1, 1, rule or "none", patch_size)
    except ShardError as error:
        raise UsageError(str(error)) from None


def _reader(against: str) -> Callable[[Label], DataSet]:
    """What reads the other data set of `--against`, once it is known that the option makes sense."""
    name, _, folder = against.partition("=")
    if name in ADAPTERS and folder:
        return lambda _: ADAPTERS[name].read(Path(folder), ADAPTERS[name].labels[0].name)
    if Path(name).is_file() and folder:
        return lambda label: read_table(
            Path(name), Path(folder), None, Label(label.name, None, None, label.higher_is_better), direction_is_stated=True
        )
    raise UsageError(f"--against {against}: write NAME=DIR, a data set and its --root, or TABLE=DIR, a score table and its --images")


def _list(_: argparse.Namespace) -> None:
    print(adapters_as_text())


def _demo(options: argparse.Namespace) -> None:
    from shards.demo import make_demo  # its photographs need the extra named demo

    make_demo(options.out, options.workers)


def _check(options: argparse.Namespace) -> None:
    print(describe(check(options.folder)))
    print("every byte is as it was written")


def _show(options: argparse.Namespace) -> None:
    print(describe(Shards(options.folder)))


def _fetch(options: argparse.Namespace) -> None:
    from shards.fetch import fetch  # its packages need the extra named remote

    print(fetch(options.folder))


def _split(options: argparse.Namespace) -> None:
    shards = Shards(options.folder)
    if options.exported:
        print(f"{options.exported}: {', '.join(export_splits(shards, options.exported, options.name, options.form))}")
        return
    rows, seed = rows_of(shards), shards.manifest["seed"] if options.seed is None else options.seed
    if options.imported:
        known = known_by(shards.manifest["data_set"], options.imported.stem)
        practice = PRACTICE if known and known.name == "livec" else None
        splits = read_splits(options.imported, rows, seed, options.name, practice)
    else:
        splits = numbered_rounds(rows, seed, options.rounds, options.ratio, options.name or "round")
    new = add_splits(shards, rows, splits)
    print("\n".join(what_to_know(rows, splits)))
    print(f"new in {shards.path('splits')}: {', '.join(new) or 'nothing, all were there already'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shards", description="Photographs and opinions in, WebDataset shards with fixed lossless patches out."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(
        commands,
        "build",
        _build,
        "write shards from a score table or a data set folder",
        after_interrupt="the same command goes on where this one stopped",
    )
    _add_source(command)
    command.add_argument("--out", type=_path, required=True, metavar="DIR", help="the shard folder to write, new or empty")
    command.add_argument("--patches", type=int, default=Settings.patches, metavar="N", help="patches per image (default: %(default)s)")
    command.add_argument(
        "--size", type=int, default=Settings.patch_size, metavar="PIXELS", help="width and height of a patch (default: %(default)s)"
    )
    command.add_argument(
        "--seed", type=int, default=Settings.seed, metavar="N", help="of the patch boxes and of the splits (default: %(default)s)"
    )
    command.add_argument("--rounds", type=_number, metavar="N", help="numbered splits (default: 10 where there is no official split)")
    _add_ratio(command)
    command.add_argument(
        "--layout",
        choices=("auto", "canvas", "patches"),
        default=Settings.layout,
        help="store images once, or patch by patch; auto takes the smaller (default: %(default)s)",
    )
    command.add_argument(
        "--codec",
        choices=sorted(CODECS),
        default=Settings.codec,
        help="raw, or losslessly packed for slow disks: zstd (default: %(default)s)",
    )
    command.add_argument(
        "--estimate", action="store_true", help="print what each layout and codec would take on the disk, and write nothing"
    )
    _add_resize(command)
    command.add_argument(
        "--shard-mib",
        type=_mebibytes,
        default=Settings.shard_bytes / 2**20,
        metavar="MIB",
        help="size of a shard, about, before a codec packs it (default: %(default)g)",
    )
    command.add_argument(
        "--share",
        type=_share,
        default=Share(),
        metavar="I/N",
        help="write every N-th shard from the I-th on, beside others that write theirs; the last one to be done finishes the folder "
        "(default: %(default)s, all)",
    )
    _add_workers(command)

    command = _add(commands, "list", _list, "show the public data sets that --dataset reads: counts, labels, files, where to ask")

    command = _add(commands, "doctor", _doctor, "before a build: is the folder safe to build? Exit status 0 yes, 1 no, 2 usage")
    _add_source(command)
    command.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="find what is also in another data set, given as NAME=ROOT or scores.csv=IMAGES; may be repeated",
    )
    command.add_argument(
        "--size", type=int, default=Settings.patch_size, metavar="PIXELS", help="the patch size of the build (default: %(default)s)"
    )
    _add_resize(command)
    _add_ratio(command)
    command.add_argument("--quick", action="store_true", help="read headers only: finds no damaged pictures and no duplicates")
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    _add_workers(command)

    command = _add(
        commands,
        "demo",
        _demo,
        "write the built-in photographs with computed pseudo-opinions (not human ratings)",
        after_interrupt="the same command begins anew",
    )
    command.add_argument("--out", type=_path, required=True, metavar="DIR", help="the folder to write")
    _add_workers(command)

    command = _add(
        commands,
        "split",
        _split,
        "add split tables to a shard folder, or take them elsewhere; pixels are not touched",
        after_interrupt="no table was changed",
    )
    command.add_argument("folder", type=_stated, help="a shard folder; to export from, also its URL")
    action = command.add_mutually_exclusive_group(required=True)
    action.add_argument("--rounds", type=_number, metavar="N", help="add N random splits by content: round-01 and on")
    action.add_argument(
        "--import", dest="imported", type=_path, metavar="FILE", help="add the splits of a table: id,part or pyiqa's meta csv"
    )
    action.add_argument(
        "--export",
        dest="exported",
        type=_path,
        metavar="FILE",
        help="write the splits to a new file, which names pictures from --root or --images on",
    )
    _add_ratio(command)
    command.add_argument("--seed", type=int, metavar="N", help="of what is drawn (default: the seed that the shards were built with)")
    command.add_argument(
        "--name", metavar="NAME", help="of the rounds (default: round), or of the one split to import or export (default: all)"
    )
    command.add_argument(
        "--form",
        choices=FORMS,
        default=FORMS[0],
        help="to export: pyiqa's meta csv, or plain, one table of id and part (default: %(default)s)",
    )

    for name, run, explanation in (
        ("check", _check, "read a shard folder from end to end and verify every byte"),
        ("show", _show, "say what a shard folder holds"),
        ("fetch", _fetch, "fill this node's cache with the shards of a URL, before a training reads them"),
    ):
        command = _add(commands, name, run, explanation)
        command.add_argument("folder", type=_stated, help="a shard folder, or its URL: http://, https:// or s3://")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    does: str,
    after_interrupt: str = "nothing was changed",
) -> argparse.ArgumentParser:
    """The parser of a command that `run` runs; what it does stands in the list of commands, and at the head of its own help."""
    command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    command.set_defaults(run=run, after_interrupt=after_interrupt)
    return command


def _add_source(command: argparse.ArgumentParser) -> None:
    source = command.add_argument_group("the data, either a table ...")
    source.add_argument(
        "--table", type=_path, metavar="FILE", help="csv, .xlsx or .json with image and score (or mos), and optionally std, group, split"
    )
    source.add_argument("--images", type=_path, metavar="DIR", help="the folder that the table's image column is relative to")
    source.add_argument("--name", metavar="NAME", help="the data set's name (default: the table's folder)")
    source.add_argument(
        "--label", metavar="NAME", help="what the score is called in every report (default: MOS); with --dataset, which of its labels"
    )
    source.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="the ends of the score's scale, such as 1 5")
    direction = source.add_mutually_exclusive_group()
    direction.add_argument("--lower-is-better", action="store_true", help="the score is a DMOS or the like")
    direction.add_argument("--higher-is-better", action="store_true", help="as it is anyhow; say so of a column dmos, as KADID-10k's")
    known = command.add_argument_group("... or a data set as it is distributed")
    known.add_argument("--dataset", type=_public_set, metavar="NAME", help="its name; `python -m shards list` shows them all")
    known.add_argument("--root", type=_path, metavar="DIR", help="the folder it was unpacked to")


def _add_resize(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--resize",
        default="aspect",
        metavar="RULE",
        help="aspect (the data set's rule that keeps it; none for a table), paper (HyperIQA's), none, exact:WIDTHxHEIGHT or short:PIXELS "
        "(default: %(default)s)",
    )


def _add_workers(command: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command.add_argument(
        "--workers", type=_number, default=cores, metavar="N", help="processes (default: one per core this process may use)"
    )


def _add_ratio(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ratio",
        type=_ratio,
        default=RATIO,
        metavar="SHARES",
        help="of the rounds, in percent: train/val/test, or train/test; then val is cut out of train, except in round-01-no-val and so on "
        "(default: %(default)s)",
    )


def _public_set(text: str) -> str:
    if text in ADAPTERS:
        return text
    near = difflib.get_close_matches(text.casefold(), ADAPTERS, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise argparse.ArgumentTypeError(f"'{text}' is no data set that is known; {hint}`python -m shards list` shows them all")


def _ratio(text: str) -> str:
    try:
        shares_of(text)
    except ShardError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _stated(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, as a shell variable is that was never set; name a file or folder")
    return text


def _path(text: str) -> Path:
    return Path(_stated(text))


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': write 1 or more")
    return int(text)


def _share(text: str) -> Share:
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"'{text}' is no share: write I/N with I from 1 to N, such as 3/16")
    return Share(int(number), int(total))


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _mebibytes(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no size of a shard; write a number of MiB, such as 128")


if __name__ == "__main__":
    sys.exit(main())
