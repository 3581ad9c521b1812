"""What the ranks found, judged: is this cluster fit for the run? Pure: reports in, checks and a verdict out.

Every check says what was found and what is expected, and holds a finding for each thing that is not so: an error when the run
would fail or its result could not be trusted, a warning when it would be slower or at risk. What a rank could not find out is a
finding, too, so that one broken node is named and the others are still examined.
"""

from __future__ import annotations

import ipaddress
import json
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from shards.findings import SEVERITIES, Finding, counted, is_safe, told

SLOW = 1.2  # times the median: a step waits for the slowest rank, and a fifth is more than ordinary jitter
SKEW = 1.0  # seconds: beyond it the lines of two logs, and files with a date, are no longer in order
CREDENTIAL_LIFE = 120.0  # seconds that Slurm's job credentials live by default (slurm.conf, AuthInfo cred_expire); munge's live 300
FREE_SHARE = 0.9  # of a GPU's memory: the driver and this process take little, so less free memory is somebody else's
BUCKET = 25 << 20  # bytes that DDP sums at once

T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """The GPU of a rank. `native` are the precisions that its hardware computes in."""

    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    driver: str
    native: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a rank read of the shards, and in how long."""

    fingerprint: str
    shards: int
    total_bytes: int
    images: int
    read_bytes: int
    seconds: float
    near: int  # shards that lie in folders
    ends: int  # of which this rank has read the first and the last block: with the other ranks of its node, all that there was time for


@dataclass(frozen=True)
class Report:
    """What one rank found out by itself. `failures` are what it could not find out, by the name of the check."""

    rank: int
    node: str
    versions: Mapping[str, str] | None = None
    gpu: Gpu | None = None
    reading: Reading | None = None
    seconds_of_work: float | None = None
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What is true of all ranks together, as rank 0 knows it. None, or empty: not measured."""

    device: str  # run.device
    precision: str  # run.precision
    plan: str = ""  # the share of a rank, in words
    work: str = ""  # what every rank computed, in words
    folder: str = ""  # run.folder
    folder_bytes: int | None = None  # that the checkpoints of the run will take at most
    free_bytes: int | None = None  # there, what earlier checkpoints of the run take included
    clocks: Sequence[tuple[float, float]] = ()  # of each rank: seconds ahead of rank 0's, and how sure that is
    summed_bytes: int = 0  # of one all-reduce, the size of a gradient
    sum_seconds: float | None = None
    small_seconds: float | None = None  # of an all-reduce of four bytes
    meeting: str = ""  # the host on which the processes meet
    addresses: Sequence[str] = ()  # of that host


@dataclass(frozen=True)
class Check:
    """One question, its answer, what it should be, and what is not so."""

    name: str
    found: str
    expected: str
    findings: tuple[Finding, ...] = ()
    skipped: bool = False  # nobody could look, or there was nothing to look at


def judge(reports: Sequence[Report], facts: Facts) -> list[Check]:
    """Every check, in the order in which a person would mend things."""
    checks = [
        _versions(reports),
        _gpus(reports, facts),
        _precision(reports, facts),
        _clocks(reports, facts),
        _shards(reports),
        Check(
            "plan",
            facts.plan or "not examined on rank 0",
            "settings that fit the data and the number of processes",
            skipped=not facts.plan,
        ),
        _folder(reports, facts),
        _disk(facts),
        _speed(reports, facts),
        _all_reduce(reports, facts),
        _meeting(facts),
    ]
    return [replace(check, findings=(*_failed(check, reports), *check.findings)) for check in checks]


def is_fit(checks: Sequence[Check]) -> bool:
    """Whether to begin the run."""
    return is_safe(_all(checks))


def verdict(checks: Sequence[Check]) -> str:
    """One line: fit, fit with warnings, or not fit, and how many findings of each severity."""
    findings = _all(checks)
    warned = any(finding.severity == "warning" for finding in findings)
    word = ("fit with warnings" if warned else "fit") if is_fit(checks) else "not fit"
    return f"verdict: {word} ({counted(findings)})"


def as_text(checks: Sequence[Check]) -> str:
    """The table for a person, then what is not as expected and what to do, then the verdict."""
    width, lines = max(len(check.name) for check in checks), []
    for check in checks:
        well = "skipped" if check.skipped else "ok"
        grade = next((each for each in SEVERITIES if any(finding.severity == each for finding in check.findings)), well)
        for title, text, name, state in (("found", check.found, check.name, grade), ("expected", check.expected, "", "")):
            head = f"{name:<{width}}  {state:<7}  {title:<8}  "
            lines.append(textwrap.fill(text, 130, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False))
    return "\n".join([*lines, "", *told(_all(checks)), verdict(checks)])


def as_json(reports: Sequence[Report], facts: Facts, checks: Sequence[Check]) -> str:
    """The same for a program, with all that the ranks reported."""
    said = {
        "fit": is_fit(checks),
        "verdict": verdict(checks),
        "checks": [asdict(check) for check in checks],
        "facts": asdict(facts),
        "ranks": [asdict(report) for report in reports],
    }
    return json.dumps(said, indent=2, ensure_ascii=False)


def algorithm_bandwidth(size: int, seconds: float) -> float:
    """Bytes per second of an all-reduce of `size` bytes: size / time (NVIDIA nccl-tests, doc/PERFORMANCE.md)."""
    return size / seconds


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Bytes per second that the slowest link must have carried: algorithm bandwidth * 2 (n - 1) / n for n ranks.

    What an all-reduce sends at least; comparable with the speed of the hardware for any n (nccl-tests, doc/PERFORMANCE.md).
    """
    return algorithm_bandwidth(size, seconds) * 2 * (ranks - 1) / ranks


def _all(checks: Iterable[Check]) -> list[Finding]:
    return [finding for check in checks for finding in check.findings]


def _failed(check: Check, reports: Sequence[Report]) -> list[Finding]:
    """What ranks could not find out, once for those that say the same."""
    texts = _grouped([report for report in reports if check.name in report.failures], lambda report: report.failures[check.name])
    findings = []
    for text, some in texts.items():
        found, _, to_do = text.partition("; ")
        findings.append(Finding("error", f"{check.name}: {found}", check.expected, to_do or "mend that there, and ask again", _where(some)))
    return findings


def _versions(reports: Sequence[Report]) -> Check:
    expected = "one version of each on all nodes, and the same sources"
    known = [report for report in reports if report.versions]
    findings, same = [], []
    for name in dict.fromkeys(name for report in known for name in report.versions or ()):
        values = _grouped(known, lambda report, name=name: (report.versions or {}).get(name, "missing"))  # type: ignore[misc]
        same += [f"{name} {value}" for value in values] if len(values) == 1 else [f"{name} differs"]
        if len(values) > 1:
            commonest, *others = sorted(values, key=lambda value: -len(values[value]))
            differ = "; ".join(f"{value} on {_nodes(values[value])}" for value in (commonest, *others))
            strangers = _nodes([report for value in others for report in values[value]])
            findings.append(
                Finding("error", f"{name}: {differ}", expected, f"install on {strangers} what the others have, or share one environment")
            )
    return Check("versions", f"{', '.join(same)}; on {_nodes(known)}", expected, tuple(findings))


def _gpus(reports: Sequence[Report], facts: Facts) -> Check:
    having = [report for report in reports if report.gpu]
    if facts.device == "cpu":
        return Check("GPUs", "run.device=cpu: every rank computes on its CPU", "none")
    expected = "a GPU for every rank, its own, of one kind, and free"
    if not having:
        severity = "error" if facts.device == "cuda" else "warning"
        finding = Finding(severity, "no rank sees a GPU", expected, "ask Slurm for GPUs (--gpus-per-node), or say run.device=cpu")
        return Check("GPUs", "none", expected, (finding,))
    findings = []
    if lacking := [report for report in reports if not report.gpu and "GPUs" not in report.failures]:
        findings.append(
            Finding("error", "ranks without a GPU, while others have one", expected, "start one process per GPU", _where(lacking))
        )
    owners = _grouped(having, lambda report: (report.node, report.gpu and report.gpu.uuid))
    if shared := [report for some in owners.values() if len(some) > 1 for report in some]:
        findings.append(Finding("error", "ranks that share a GPU", expected, "start one process per GPU", _where(shared)))
    for what in ("name", "driver"):
        kinds = _grouped(having, lambda report, what=what: getattr(report.gpu, what))  # type: ignore[misc]
        if len(kinds) > 1:
            differ = "; ".join(f"{kind} on {_nodes(some)}" for kind, some in kinds.items())
            findings.append(
                Finding("warning", f"several kinds of GPU {what}: {differ}", expected, "ask for nodes of one kind (--constraint)")
            )
    if taken := [report for report in having if report.gpu and report.gpu.free_bytes < FREE_SHARE * report.gpu.total_bytes]:
        free = ", ".join(
            f"{_size(report.gpu.free_bytes)} of {_size(report.gpu.total_bytes)} on rank {report.rank}" for report in taken if report.gpu
        )
        findings.append(
            Finding(
                "warning",
                f"memory that somebody else holds: free are {free}",
                expected,
                "see nvidia-smi there for whose process it is",
                _where(taken),
            )
        )
    gpus = [report.gpu for report in having if report.gpu]
    names = ", ".join(f"{len(some)} x {name}" for name, some in _grouped(gpus, lambda gpu: gpu.name).items())
    found = f"{names}, {_size(min(gpu.total_bytes for gpu in gpus))}, {_size(min(gpu.free_bytes for gpu in gpus))} or more free"
    return Check("GPUs", f"{found}; driver {', '.join(sorted({gpu.driver for gpu in gpus}))}", expected, tuple(findings))


def _precision(reports: Sequence[Report], facts: Facts) -> Check:
    if facts.precision == "no":
        return Check("precision", "run.precision=no: float32", "what every device computes in")
    expected = f"{facts.precision} by every rank's device, in hardware"
    lacking = [report for report in reports if report.gpu and facts.precision not in report.gpu.native]
    findings = []
    if lacking:
        found, to_do = f"GPUs that have no {facts.precision} in hardware", "take other GPUs, or another run.precision"
        findings.append(Finding("warning", found, expected, to_do, _where(lacking)))
    able = sum("precision" not in report.failures for report in reports)
    return Check("precision", f"{facts.precision} multiplies on {able} of {_counted(len(reports), 'rank')}", expected, tuple(findings))


def _clocks(reports: Sequence[Report], facts: Facts) -> Check:
    expected = f"within {SKEW:g} s of rank 0's, for logs and locks (beyond {CREDENTIAL_LIFE:g} s Slurm's credentials are refused)"
    best: dict[str, tuple[float, float]] = {}  # of each node, the measurement that is surest
    for report, (ahead, unsure) in zip(reports, facts.clocks, strict=False):
        if report.node not in best or unsure < best[report.node][1]:
            best[report.node] = ahead, unsure
    findings = []
    for node, (ahead, unsure) in best.items():
        if abs(ahead) - unsure > SKEW:
            severity = "error" if abs(ahead) - unsure > CREDENTIAL_LIFE else "warning"
            found = f"the clock of {node} is {_seconds(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} that of {reports[0].node}"
            findings.append(Finding(severity, f"{found} (to {_seconds(unsure)})", expected, f"set the clock of {node} by NTP (chrony)"))
    others = {node: found for node, found in best.items() if node != reports[0].node}
    ordered = sorted(others.items(), key=lambda item: -abs(item[1][0]))
    text = _some([f"{node} {'+' if ahead > 0 else '-'}{_seconds(abs(ahead))} (to {_seconds(unsure)})" for node, (ahead, unsure) in ordered])
    return Check("clocks", text or "one node has one clock", expected, tuple(findings))


def _shards(reports: Sequence[Report]) -> Check:
    expected = "every shard of its length and readable at both ends on every node, and every checksum right of the images that were read"
    known = [report for report in reports if report.reading]
    readings = [report.reading for report in known if report.reading]
    if not readings:
        return Check("shards", "none could be read", expected, skipped=True)
    findings = []
    kinds = _grouped(known, lambda report: report.reading and report.reading.fingerprint)
    if len(kinds) > 1:
        differ = "; ".join(f"{name} on {_nodes(some)}" for name, some in kinds.items())
        findings.append(Finding("error", f"other data on other nodes: {differ}", expected, "give every node the same shard folder"))
    first, images = readings[0], sum(reading.images for reading in readings)
    speed = min(reading.read_bytes / max(reading.seconds, 1e-9) for reading in readings)
    of_nodes = _grouped(known, lambda report: report.node)
    ends_on = {node: sum(report.reading.ends for report in some if report.reading) for node, some in of_nodes.items()}
    least = min(ends_on.values())
    ends = f"; both ends of {least:,} of {first.near:,} read on every node" if first.near else ""
    if short := [node for node, number in ends_on.items() if number < first.near]:
        found = f"time was up when both ends of {least:,} of {first.near:,} shards had been read"
        findings.append(
            Finding("warning", found, expected, "give the command again when the disk has less to do, or run `shards check`", tuple(short))
        )
    found = (
        f"{_counted(first.shards, 'shard')}, {_size(first.total_bytes)}; {_counted(images, 'image')} read and verified by "
        f"{_counted(len(readings), 'rank')} on {_nodes(known)}, the slowest at {speed / 1e6:,.0f} MB/s{ends}"
    )
    return Check("shards", found, expected, tuple(findings))


def _folder(reports: Sequence[Report], facts: Facts) -> Check:
    seen = [report for report in reports if "run folder" not in report.failures]
    found = f"{facts.folder}: what rank 0 writes is seen by {len(seen)} of {_counted(len(reports), 'rank')}"
    return Check("run folder", found, "one folder on all nodes, which rank 0 may write")


def _disk(facts: Facts) -> Check:
    if facts.folder_bytes is None or facts.free_bytes is None:
        return Check("disk", "not examined on rank 0", "room for the checkpoints", skipped=True)
    found, expected = (
        f"{_size(facts.free_bytes)} for this run in {facts.folder}",
        f"{_size(facts.folder_bytes)} for its checkpoints at most",
    )
    findings = []
    if facts.free_bytes < facts.folder_bytes:
        findings.append(Finding("error", found, expected, "free the disk, lower save.keep, or choose another run.folder"))
    return Check("disk", f"{found}, quotas aside", expected, tuple(findings))


def _speed(reports: Sequence[Report], facts: Facts) -> Check:
    expected = f"every rank within {SLOW:g} times the median: a step waits for the slowest"
    known = [(report.seconds_of_work, report) for report in reports if report.seconds_of_work is not None]
    timed = sorted(known, key=lambda pair: pair[0])
    if not timed:
        return Check("speed", "not measured", expected, skipped=True)
    median = statistics.median_low([seconds for seconds, _ in timed])
    slow = [(seconds, report) for seconds, report in timed if seconds > SLOW * median]
    findings = [
        Finding(
            "warning",
            f"rank {report.rank} on {report.node} takes {_seconds(seconds)}, {seconds / median:.1f} times the median",
            expected,
            "look there for another job, heat or a slower device, or leave that node out (--exclude)",
        )
        for seconds, report in reversed(slow)
    ]
    slowest, who = timed[-1]
    found = f"{facts.work}: {_seconds(median)} in the median, {_seconds(slowest)} on rank {who.rank} ({who.node}), the slowest"
    return Check("speed", found, expected, tuple(findings))


def _all_reduce(reports: Sequence[Report], facts: Facts) -> Check:
    expected = "a gradient is summed in less time than it is computed in"
    if len(reports) == 1:
        return Check("all-reduce", "one process has nobody to sum with", expected, skipped=True)
    if facts.sum_seconds is None or facts.small_seconds is None:
        return Check("all-reduce", "not measured", expected, skipped=True)
    size, seconds = facts.summed_bytes, facts.sum_seconds
    work = statistics.median_low(times) if (times := [r.seconds_of_work for r in reports if r.seconds_of_work is not None]) else None
    findings = []
    if work is not None and seconds > work:
        findings.append(
            Finding(
                "warning",
                f"{_seconds(seconds)} to sum a gradient, {_seconds(work)} to compute one ({facts.work}): ranks mostly wait",
                expected,
                "see that the fast network is used (NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO), or give each rank more work (train.micro_batch)",
            )
        )
    found = (
        f"{_size(size)} in {_seconds(seconds)}: {algorithm_bandwidth(size, seconds) / 1e9:.2f} GB/s (size / time), bus "
        f"{bus_bandwidth(size, seconds, len(reports)) / 1e9:.2f} GB/s (times 2 (n - 1) / n, as nccl-tests have it); "
        f"4 bytes in {_seconds(facts.small_seconds)}"
    )
    return Check("all-reduce", found, expected, tuple(findings))


def _meeting(facts: Facts) -> Check:
    expected = "an address that only the nodes of the job can reach: whoever else does can run programs as you (SECURITY.md)"
    if not facts.meeting:
        return Check("meeting", "one process meets nobody", expected, skipped=True)
    findings = []
    if public := [address for address in facts.addresses if ipaddress.ip_address(address.partition("%")[0]).is_global]:
        found = f"the processes meet at {facts.meeting}, a public address ({', '.join(public)})"
        findings.append(Finding("warning", found, expected, "name a private interface, or see that a firewall closes the nodes' ports"))
    return Check("meeting", f"{facts.meeting} ({', '.join(facts.addresses) or 'no address'})", expected, tuple(findings))


def _grouped(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _where(reports: Iterable[Report]) -> tuple[str, ...]:
    """Each node once, with its ranks."""
    by_node = _grouped(reports, lambda report: report.node)
    return tuple(f"{node} (rank{'s' * (len(some) > 1)} {', '.join(str(report.rank) for report in some)})" for node, some in by_node.items())


def _nodes(reports: Iterable[Report]) -> str:
    return _some(list(dict.fromkeys(report.node for report in reports))) or "no node"


def _some(names: Sequence[str]) -> str:
    """The first few of many."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"
