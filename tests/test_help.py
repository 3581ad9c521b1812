"""What --help says of every command of both programs: each option in words, and each default once."""

from __future__ import annotations

import argparse

import pytest

from dist_train.__main__ import _parser as of_dist_train
from shards.__main__ import _parser as of_shards

COMMANDS: list[argparse.ArgumentParser] = [
    command
    for parser in (of_dist_train(), of_shards())
    for action in parser._actions
    if isinstance(action, argparse._SubParsersAction)
    for command in action.choices.values()
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.prog.removeprefix("python -m "))
def test_help_says_what_the_command_and_each_option_does_and_each_default_once(command: argparse.ArgumentParser) -> None:
    said = " ".join(command.format_help().split())
    assert command.description and command.description.removesuffix(".") in said
    for nothing in ("None", "False", "[]"):
        assert f"default: {nothing}" not in said
    for option in command._actions[1:]:  # without --help itself
        text = " ".join(command._get_formatter()._expand_help(option).split())
        assert text and not text.startswith("("), option.dest
        assert ") (default:" not in text, option.dest
        if option.nargs != 0 and isinstance(option.default, str | int | float) and option.dest != "workers":
            assert f"(default: {option.default:g}" in text if isinstance(option.default, float) else f"(default: {option.default}" in text
