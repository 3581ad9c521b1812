"""The shell scripts' functions, asked one by one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def answers(script: str, question: str, variables: str) -> bool:
    """What a function of a script says; others that it asks stand in the script too."""
    text = (ROOT / script).read_text()
    asked = ("this_turn", "not_met", question)
    found = {name: re.search(rf"^{name}\(\) \{{(.*\}}|(?s:.*?)^\}})$", text, re.MULTILINE) for name in asked}
    assert found[question]
    functions = "\n".join(function[0] for function in found.values() if function)
    return subprocess.run(["bash", "-c", f"set -euo pipefail; {variables}\n{functions}\n{question}"]).returncode == 0
