"""The mathematics of the theory stands apart from the statements, the plots and the command."""

import subprocess
import sys

from helpers import new_process
from test_imports import ROOT, imports_of


def test_the_mathematics_is_loaded_alone():
    code = """
import sys, dcjax.toy
apart = {"matplotlib", "diffrax", "dcjax.collapse.plot", "dcjax.toy.statements", "dcjax.toy.__main__"}
sys.exit(", ".join(apart & sys.modules.keys()) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], env=new_process(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_mathematics_imports_nothing_above_it():
    files = [file for file in (ROOT / "dcjax/toy").glob("*.py") if file.name != "__main__.py"]
    assert len(files) == 6
    for file in files:
        for name in imports_of(file):
            assert name.split(".")[0] not in ("argparse", "matplotlib"), f"{file} imports {name}"
            assert not name.startswith(("dcjax.toy.statements", "dcjax.runtime.cli")), f"{file} imports {name}"
