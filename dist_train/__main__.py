"""python -m dist_train COMMAND; train and evaluate are started alone, by torchrun or by accelerate. --help lists the commands."""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from dist_train.config import as_yaml, load_config
from dist_train.errors import ConfigError, TrainingError
from dist_train.last_words import leave_to_the_launcher, say_last
from shards.manifest import ShardError

SETTINGS = "settings after the config file, as section.key=value; `plan` prints them all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 it did what it was asked (see status.json), 1 it failed, the doctor
    says no, or, with --fail-if-unfinished, it was asked to stop."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if "settings" in options and all("=" in word and not word.startswith("-") for word in rest):
        options.settings += rest  # those after an option, such as --processes 2, which argparse does not join to those before it
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status = options.run(options)
        sys.stdout.flush()
    except (ConfigError, ShardError, TrainingError) as error:
        return _fail(error, f"error: {error}")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and options.run is not _train and _nobody_reads():
            return 1
        return _fail(error, traceback.format_exc() + _of_a_loss(error))
    return int(status or 0)


def _nobody_reads() -> bool:
    """Whether the reader of what is printed has gone, as `| head` does; then the rest is dropped, or Python would complain of it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _fail(error: Exception, text: str) -> int:
    """Says why, if this process was the first to fail, and leaves it to the launcher to say it last."""
    if _is_first_to_fail(error):
        say_last(error, text)
    elif isinstance(error, ConfigError | ShardError | TrainingError):  # all ranks raise what rank 0 refuses; this host has its own launcher
        leave_to_the_launcher(error, text)
    return 1


def _of_a_loss(error: Exception) -> str:
    """What to say below the traceback where the error only tells that a process is gone; slurm/train.sh knows a loss by it."""
    if "dist_train.ranks" not in sys.modules:
        return ""
    from dist_train import ranks

    last_line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return f"error: lost another process ({last_line}); the same command goes on" if ranks.lost_a_process(error) else ""


def _is_first_to_fail(error: Exception) -> bool:
    if "RANK" not in os.environ and "dist_train.ranks" not in sys.modules:
        return True  # nobody else is there, and nobody waits seconds for torch to read of a misspelt word
    from dist_train import ranks

    return ranks.claim_failure(error)


# In each of these the config is read before what needs torch is imported: a wrong one is told at once.
def _train(options: argparse.Namespace) -> int:
    from dist_train.stopping import StopRequest

    config = load_config(options.config, options.settings)
    with StopRequest(config.run.folder) as request:
        from dist_train.training import train

        ended = train(config, request)
    return int(options.fail_if_unfinished and not ended)


def _plan(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.settings)
    from dist_train.plan import describe_plan, make_plan
    from dist_train.pretrained import weights_file

    world = config.run.processes or 1 if options.processes is None else options.processes
    if world < 1:
        raise ConfigError(f"--processes {world}: a run has at least one process")
    plan = make_plan(config, world)
    if isinstance(source := config.model.pretrained, str) and config.model.start_from is None:
        weights_file(config.model.backbone, source)  # a run would find out when it begins
    print(as_yaml(config))
    print(describe_plan(plan))


def _folder(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.settings)
    if options.processes:
        from dist_train.plan import make_plan
        from dist_train.run_folder import refuse_another_run

        for world in options.processes:
            refuse_another_run(make_plan(config, world))
    print(config.run.folder)


def _nodes(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.settings)
    from dist_train.plan import most_nodes

    nodes, why = most_nodes(config, options.at_most, options.processes_per_node)
    if why:
        print(f"note: not on {options.at_most} nodes, because {why}", file=sys.stderr)
    print(nodes)


def _fetch(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.settings)
    model = config.model
    from dist_train.backbone import features_only
    from dist_train.origin import open_origin
    from dist_train.pretrained import load_pretrained

    if open_origin(config) is not None:
        print(f"the weights are those of model.start_from={model.start_from}: there is nothing to fetch")
        return
    if model.pretrained is True:
        print(f"asking for the weights of {model.backbone}; without a connection this takes a minute to give up", file=sys.stderr)
    load_pretrained(features_only(model.backbone), model.backbone, model.pretrained)
    got = "are here and fit" if model.pretrained else "are random: there is nothing to fetch"
    print(f"the weights of {model.backbone} (model.pretrained={model.pretrained}) {got}")


def _doctor(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.settings)
    from dist_train.doctor import examine

    return 0 if examine(config, options.wait, options.json) else 1


def _predict(options: argparse.Namespace) -> None:
    import torch

    from dist_train.loss import leaves_scale_open
    from dist_train.model_folder import find_weights, open_model
    from dist_train.predict import predict, write_predictions
    from dist_train.status import how_far_the_run_is

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.out is not None and options.out.is_file():
        raise ConfigError(f"--out {options.out}: is there already; name another file, or delete it")
    trained = open_model(options.checkpoint)
    if note := how_far_the_run_is(find_weights(options.checkpoint)):
        print(f"note: {note}", file=sys.stderr)
    name = options.scale or next(iter(trained.scales))
    if name not in trained.scales:
        raise ConfigError(f"--scale {name}: the model was trained on {', '.join(trained.scales)}")
    loss, cutting = trained.config.loss, trained.cuttings[name]
    on = (
        f"no scale, since loss.regression={loss.regression} leaves it open, in the direction of"
        if leaves_scale_open(loss)
        else "the scale of"
    )
    print(
        f"scores on {on} {name}: {trained.scales[name].label}; pictures are cut like those of {name} (resize {cutting.resize})",
        file=sys.stderr,
    )
    predictions = predict(trained, name, options.pictures, device, options.batch_images, options.workers)
    with nullcontext(sys.stdout) if options.out is None else _named_when_whole(options.out) as file:
        failed = write_predictions(predictions, file)
    if failed:
        raise ConfigError(f"{failed} picture{'s' * (failed > 1)} could not be scored, as said above; all others were")


@contextmanager
def _named_when_whole(path: Path) -> Iterator[TextIO]:
    """A file to write to that gets its name at the end; what is no ordinary file, such as a pipe, as it is."""
    place = path if path.exists() else path.with_name(f".{path.name}.part")
    with place.open("w", encoding="utf-8", newline="") as file:
        yield file
    if place != path:
        place.replace(path)


def _evaluate(options: argparse.Namespace) -> None:
    from dist_train.evaluate import evaluate

    given = {
        "run.device": options.device,
        "run.precision": options.precision,
        "data.workers": options.workers,
        "evaluate.batch_images": options.batch_images,
    }
    settings = [f"{key}={value}" for key, value in given.items() if value is not None]
    evaluate(options.checkpoint, options.shards, options.split, options.part, options.out, settings)


def _compare(options: argparse.Namespace) -> None:
    from dist_train.compare import compare

    print(compare([options.first, *options.others]))


def _compare_history(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.settings)
    from dist_train.compare_history import compare_history

    print(compare_history(config, options.seeds, options.processes))


def _import_hyperiqa(options: argparse.Namespace) -> None:
    from dist_train.model_folder import Cutting
    from dist_train.published import import_hyperiqa
    from shards.manifest import Label

    low, high = options.range
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"--range {low:g} {high:g}: write the two ends of the scale, the lower one first")
    label = Label(options.label, low, high, not options.lower_is_better)
    cutting = Cutting(options.patch_size, options.patches, options.resize, options.seed)
    number = import_hyperiqa(options.file, options.out, label, cutting)
    print(f"{number} tensors of {options.file} are the model in {options.out}; its scores are taken for {label}")


def _variants(_: argparse.Namespace) -> None:
    from dist_train.variants import variants_table

    print(variants_table())


def _report(options: argparse.Namespace) -> None:
    from dist_train.report import draw_report, final_table
    from dist_train.status import read_status

    path = draw_report(options.folder)
    print(final_table(read_status(options.folder) or {}))
    print(f"\n{path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dist_train", description="Blind image quality assessment with HyperIQA, the same on any number of processes."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(
        commands, "train", _train, "train, or go on training, in run.folder; start it alone, by torchrun or by accelerate launch"
    )
    _take_config(command)
    command.add_argument(
        "--fail-if-unfinished",
        action="store_true",
        help="exit with 1 when asked to stop, for launchers that otherwise take the run for done",
    )

    command = _add(commands, "plan", _plan, "print settings, batches, steps and rates without training, and what would not be reproducible")
    _take_config(command)
    command.add_argument("--processes", type=int, metavar="N", help="plan for so many (default: run.processes, else 1)")

    command = _add(commands, "folder", _folder, "print the run folder that the settings name, for scripts")
    _take_config(command)
    command.add_argument(
        "--processes",
        type=_worlds,
        metavar="N,N",
        help="and refuse what could not train, or go on, in it on each of these numbers of processes",
    )

    command = _add(commands, "nodes", _nodes, "print on how many nodes at most the training can run, for scripts; and why not on more")
    _take_config(command)
    command.add_argument("--at-most", type=_whole, required=True, metavar="N", help="of so many nodes")
    command.add_argument("--processes-per-node", type=_whole, required=True, metavar="N", help="with so many processes on each")

    command = _add(commands, "fetch", _fetch, "download the pretrained weights ahead, where there is internet")
    _take_config(command)

    command = _add(
        commands, "doctor", _doctor, "before a big run: is the cluster fit for it? Started as the training; exit status 0 yes, 1 no"
    )
    command.add_argument("--json", metavar="FILE", help="write the diagnosis there, too; - prints it instead of the table")
    command.add_argument(
        "--wait", type=float, default=120.0, metavar="SECONDS", help="to wait for ranks that do not come (default: %(default)g)"
    )
    _take_config(command)

    command = _add(commands, "predict", _predict, "score pictures that nobody has rated, with a trained model")
    command.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="a run folder, or the folder of a model")
    command.add_argument("pictures", type=Path, nargs="+", help="pictures, and folders, with all pictures below them")
    command.add_argument("--out", type=Path, metavar="FILE", help="the csv file to write: image, score, spread, id (default: the terminal)")
    command.add_argument(
        "--scale", metavar="SET", help="of a model of several data sets: on whose scale, and cut like whose pictures (default: the first's)"
    )
    command.add_argument("--batch-images", type=int, default=4, metavar="N", help="pictures scored together (default: %(default)s)")
    command.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode (default: %(default)s)")
    command.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU when there is one)")

    command = _add(
        commands, "evaluate", _evaluate, "score rated data sets with a trained model, on any number of processes: a csv each, and one table"
    )
    command.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="a run folder, or the folder of a model")
    command.add_argument("--shards", nargs="+", default=[], metavar="FOLDER", help="the data sets (default: what it was trained on)")
    command.add_argument(
        "--split", metavar="NAME", help="whose parts are meant (default: the one it was trained with; of another set official, or round-01)"
    )
    command.add_argument(
        "--part",
        choices=("test", "val", "train", "all"),
        help="which images (default: test; all of a set that the model was not trained on)",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="the folder to write (default: evaluation/ beside the model)")
    command.add_argument(
        "--batch-images", type=int, metavar="N", help="pictures scored together (default: as the run, which gives its very figures)"
    )
    command.add_argument("--workers", type=int, metavar="N", help="loader processes per rank (default: as the run)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="auto: a GPU where there is one (default: as the run)")
    command.add_argument("--precision", choices=("no", "tf32", "bf16", "fp16"), help="no: float32 (default: as the run)")

    command = _add(
        commands,
        "compare",
        _compare,
        "say whether runs are better than the first, on the same images of the sets that all share; of one side, each run and their median",
    )
    command.add_argument(
        "first",
        metavar="FIRST",
        help="a folder of a run or of `evaluate`, or a pattern in quotes such as 'runs/a-*': the median over its runs",
    )
    command.add_argument("others", metavar="OTHER", nargs="*", help="what is compared with the first")

    command = _add(
        commands, "compare-history", _compare_history, "train with each of the three old bugs, with all and without, and compare"
    )
    _take_config(command)
    command.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="every variant is trained with each (default: 0)"
    )
    command.add_argument("--processes", type=_whole, default=1, metavar="N", help="of every run (default: %(default)s)")

    command = _add(
        commands, "import-hyperiqa", _import_hyperiqa, "turn the checkpoint that HyperIQA's authors publish into a model for `predict`"
    )
    command.add_argument("file", type=Path, help="their file, such as koniq_pretrained.pkl; it says nothing of its data, so these do:")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model folder to write")
    command.add_argument("--patches", type=_whole, default=25, metavar="N", help="patches per picture (default: %(default)s)")
    command.add_argument(
        "--patch-size", type=_whole, default=224, metavar="PIXELS", help="width and height of a patch (default: %(default)s)"
    )
    command.add_argument(
        "--resize",
        default="exact:384x512",
        metavar="RULE",
        help="none, exact:WIDTHxHEIGHT or short:PIXELS (default: %(default)s, for KonIQ-10k)",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the places of the patches (default: %(default)s)")
    command.add_argument("--label", default="MOS_zscore", metavar="NAME", help="what its scores are called (default: %(default)s)")
    command.add_argument("--range", type=float, nargs=2, default=(0.0, 100.0), metavar=("LOW", "HIGH"), help="their scale (default: 0 100)")
    command.add_argument("--lower-is-better", action="store_true", help="the scores are a DMOS")

    command = _add(commands, "variants", _variants, "count parameters and multiply-adds of the model's variants (half a minute)")

    command = _add(commands, "report", _report, "print the figures of a run and draw its picture again")
    command.add_argument("folder", type=Path, help="a run folder")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: Callable[[argparse.Namespace], int | None], does: str
) -> argparse.ArgumentParser:
    """The parser of a command that `run` runs; what it does stands in the list of commands, and at the head of its own help."""
    command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    command.set_defaults(run=run)
    return command


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a number of at least 1")
    return number


def _worlds(text: str) -> list[int]:
    try:
        return [_whole(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 1,2,4") from None


def _take_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, help="a YAML file, such as configs/koniq10k_resnet50.yaml")
    command.add_argument("settings", nargs="*", metavar="key=value", help=SETTINGS)


if __name__ == "__main__":
    sys.exit(main())
