"""`experiments/gpu.sh`: every command that it would give is one that its program takes, and bad input ends at once."""

import os
import subprocess

import pytest
import test_gpu
from helpers import ROOT, ParsedError, start_module, write_images

from dcjax.runtime import cli
from experiments.scales import SCALES

SCRIPT = ROOT / "experiments" / "gpu.sh"
GPU_SCALES = [name for name in SCALES if name.startswith("gpu")]
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$@" "--end--" >> "$RECORD"
"""


def run_script(*arguments, tmp_path):
    """Runs the script with a `python` that notes its arguments and does nothing; the process and the commands."""
    folder, record = tmp_path / "bin", tmp_path / "record"
    folder.mkdir(exist_ok=True)
    record.write_text("")
    (folder / "python").write_text(RECORDER)
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record)}
    process = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
    return process, [text.split("\n")[:-1] for text in record.read_text().split("--end--\n")[:-1]]


def test_the_shell_reads_the_script():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.mark.parametrize("part", ["tests", "step", *GPU_SCALES])
def test_every_command_is_one_that_its_program_takes(part, tmp_path, monkeypatch, stops_after_parsing):
    write_images(tmp_path / "images/train/a", 1)
    out, images = str(tmp_path / "out"), str(tmp_path / "images")
    arguments = ["rows", out, images, part] if part in SCALES else [part, out]
    process, commands = run_script(*arguments, tmp_path=tmp_path)
    assert process.returncode == 0, process.stderr
    assert len(commands) == {"tests": 3, "step": 8}.get(part, 2)
    assert (tmp_path / "out/machine.txt").exists()
    for command in commands:
        if command[1] == "pytest":
            assert command == ["-m", "pytest", "-m", test_gpu.pytestmark.name, "-n", "0", "-q"]
            continue
        assert command[0] == "-m"
        with pytest.raises(ParsedError):
            start_module(*command[1:], monkeypatch=monkeypatch)
    if part in SCALES:
        assert all(f"--scale={part}" in command for command in commands)


def test_a_wrong_flag_would_be_found(monkeypatch, stops_after_parsing, tmp_path):
    with pytest.raises(SystemExit):
        start_module("experiments.benchmarks.loss", "--size", "4096", "--pairs", "1", monkeypatch=monkeypatch)
    with pytest.raises(cli.SettingError):
        start_module("experiments.table1", "--scale=gpu_moon", monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the part must be tests, step or rows, found ''"),
        (["everything", "OUT"], "found 'everything'"),
        (["tests"], "give a folder for the results after 'tests'"),
        (["rows", "OUT"], "rows needs the folder of the images, found ''"),
        (["rows", "OUT", "OUT/nowhere"], "rows needs the folder of the images, found 'OUT/nowhere'"),
        (["rows", "OUT", "OUT", "laptop"], "found 'laptop'"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(arguments, words, tmp_path):
    out = str(tmp_path / "out")
    process, commands = run_script(*(text.replace("OUT", out) for text in arguments), tmp_path=tmp_path)
    assert process.returncode == 2
    assert commands == []
    assert process.stderr.startswith("gpu.sh: ")
    assert process.stderr.count("\n") == 1
    assert words.replace("OUT", out) in process.stderr
    assert not (tmp_path / "out").exists()
