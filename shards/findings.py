"""What a doctor says: found, expected, what to do, and in the end whether it is safe to build.

A finding is an error when the build would refuse the folder or no number made from its shards could be trusted, a warning when a
person should look first, a note when there is something to know.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from shards.datasets import OtherTableError
from shards.manifest import ShardError

SEVERITIES = ("error", "warning", "note")
PLACES = 1000  # that a finding names at most


@dataclass(frozen=True)
class Finding:
    """One thing to know of a data set. `where` names the files, pairs or groups, the first thousand of them."""

    severity: str  # error, warning or note
    found: str
    expected: str
    to_do: str
    where: tuple[str, ...] = ()


def refused(error: ShardError) -> Finding:
    """What to say when the data set could not even be read."""
    found, to_do = _parted(error)
    return Finding("error", found, "a table and pictures that can be read", to_do)


def _parted(error: ShardError) -> tuple[str, str]:
    """What was found, and what to do."""
    found, _, to_do = str(error).partition("; ")
    return found, to_do or "mend that and run the doctor again"


class BadRows:
    """The rows that cannot be used, each given as what is wrong with it: a finding for each thing to do about them."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._told: dict[str, list[str]] = defaultdict(list)
        self.images = 0  # that are left out for them

    def add(self, error: ShardError) -> None:
        self.images += not isinstance(error, OtherTableError)
        found, to_do = _parted(error)
        self._numbers[to_do] += 1
        if self._numbers[to_do] <= PLACES:
            self._told[to_do].append(found)

    def findings(self, folder: Path) -> list[Finding]:
        """What there is to say of them, by the names that their files have in the data set's folder."""
        expected = "an image of its own in every row, its content, and an opinion that is a number on the scale"
        return [
            Finding("error", f"{number:,} row(s) that cannot be used", expected, to_do, places(self._named(to_do, folder)))
            for to_do, number in self._numbers.items()
        ]

    def _named(self, to_do: str, folder: Path) -> Iterator[str]:
        begun = re.compile(rf"(^|\(|, | and | in ){re.escape(f'{folder}{os.sep}')}")  # not within a path: old_data/a.png is not in data
        return (begun.sub(r"\1", told) for told in self._told[to_do])


def places(where: Iterable[object]) -> tuple[str, ...]:
    """What goes into `where`."""
    return tuple(str(place) for place in islice(where, PLACES))


def is_safe(findings: Iterable[Finding]) -> bool:
    """Whether to build."""
    return all(finding.severity != "error" for finding in findings)


def verdict(name: str, findings: Sequence[Finding]) -> str:
    """One line: safe or not, and how many findings of each severity."""
    return f"{name}: {'safe' if is_safe(findings) else 'not safe'} to build ({counted(findings)})"


def counted(findings: Iterable[Finding]) -> str:
    """How many findings of each severity, in words."""
    numbers = Counter(finding.severity for finding in findings)
    return ", ".join(f"{numbers[each]} {each}{'s' * (numbers[each] != 1)}" for each in SEVERITIES if numbers[each]) or "nothing found"


def as_text(name: str, findings: Sequence[Finding]) -> str:
    """The findings for a person, the gravest first, and the verdict in the last line."""
    return "\n".join([*told(findings), verdict(name, findings)])


def told(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines for a person, the gravest first."""
    lines = []
    for severity in SEVERITIES:
        some = [finding for finding in findings if finding.severity == severity]
        lines += [f"{severity}s ({len(some)})"] if some else []
        for finding in some:
            where = _listed(finding.where)
            parts = (("found", finding.found + (f": {where}" if where else "")), ("expected", finding.expected), ("to do", finding.to_do))
            lines += [
                textwrap.fill(
                    text, 120, initial_indent=f"  {title:<10}", subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False
                )
                for title, text in parts
            ]
            lines.append("")
    return lines


def as_json(name: str, findings: Sequence[Finding]) -> str:
    """The same for a program."""
    said = {"data_set": name, "safe": is_safe(findings), "verdict": verdict(name, findings), "findings": [asdict(f) for f in findings]}
    return json.dumps(said, indent=2)


def _listed(where: Sequence[str]) -> str:
    more = f" and {len(where) - 3:,} more, which --json lists" if len(where) > 3 else ""
    return ", ".join(where[:3]) + more
