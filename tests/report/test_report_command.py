"""The command `dcjax report`: what it prints, what it refuses, and that a refusal writes nothing."""

import os
import pathlib
import subprocess
import sys

import pytest
from report_runs import write_run

from dcjax.__main__ import start
from dcjax.report.__main__ import main
from dcjax.runtime.errors import SettingError

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_it_prints_a_line_and_does_not_load_jax(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, steps=2, lines=2, looks=1, dead=3)
    code = (
        "import sys; from dcjax.__main__ import start; start(['report', 'one', 'two'])\n"
        "assert not {'jax', 'jaxlib', 'torch'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    size = (tmp_path / "report.html").stat().st_size
    verdict = "r: dimensional, z: no collapse"
    assert done.stdout == f"report.html ({size / 1000:.0f} kB) one: {verdict}; two: {verdict}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["report"], "name one RUN or more; found none"),
        (["report", "missing"], "missing is no folder"),
        (["report", "run", "run"], "are the same run"),
        (["report", "run", "--out=folder"], "--out must name a file, found the folder folder"),
        (["report", "run", "--out=run/config.json"], "--out must name an .html file, found run/config.json"),
        (["report", "run", "--out=nowhere/report.html"], "there is no folder"),
        (["report", "run", "--output=x.html"], "unrecognized arguments"),
        (["reprot", "run"], "did you mean 'report'?"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", steps=1, lines=1, looks=1, monitor=False, end=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "report.html").write_text("an older report")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SettingError) as error:
        start(argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_that_cannot_be_written(tmp_path):
    run = write_run(tmp_path / "run", steps=1, lines=1, looks=1, monitor=False, end=False)
    out = tmp_path / "report.html"
    out.with_name("report.html.partial").mkdir()  # root may write anywhere, but not to a folder
    with pytest.raises(SettingError, match=r"--out .*report.html cannot be written"):
        main([str(run), f"--out={out}"])
    assert not out.exists()
