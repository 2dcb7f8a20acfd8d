"""A small part of the torture suite; `python tests/torture` is all of it."""

import json
import subprocess
import sys

from helpers import ROOT, new_process


def test_kills_between_the_writes_of_a_save_and_damage_to_every_kind_of_file():
    """In a process of its own, since its children must find no device started."""
    command = [sys.executable, str(ROOT / "tests" / "torture"), "--only=saves,damage", "--saves=2", "--damage=10"]
    process = subprocess.run(command, env=new_process(1), capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    found = {name: value for line in process.stdout.splitlines() for name, value in json.loads(line).items()}
    assert found["saves"]["injected"] == 2
    assert found["damage"]["injected"] == 10
