"""`python -m dcjax.toy`: its files, its exit status, and its answers to mistakes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from dcjax.errors import SettingError
from dcjax.toy.__main__ import main


def command(*flags, cwd):
    return subprocess.run(
        [sys.executable, "-m", "dcjax.toy", *flags],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        check=False,
    )


def test_a_statement_prints_its_table_and_writes_its_files(tmp_path):
    done = command("--lemma", "1", "--dim", "3", "--seeds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Lemma 1" in done.stdout
    assert "g against autodiff, relative" in done.stdout
    numbers = json.loads((tmp_path / "runs/toy/lemma_1.json").read_text())
    assert numbers["options"] == {"seed": 0, "seeds": 2, "dim": 3}
    assert numbers["precision"] == "float64"
    assert (tmp_path / "runs/toy/lemma_1.png").exists()


def test_a_claim_that_fails_is_exit_status_1(tmp_path):
    flags = ["--theorem", "1", "--dim", "4", "--seeds", "1", "--amplitude", "1.5", "--steps", "10", "--no-x64"]
    done = command(*flags, "--out", str(tmp_path / "here"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("dcjax: a claim does not hold (NO in the table) in 1 of 1 statements (the bounds")
    numbers = json.loads((tmp_path / "here/theorem_1.json").read_text())
    assert not numbers["holds"]
    assert numbers["precision"] == "float32"


@pytest.mark.slow
def test_many_seeds_do_not_wait_for_each_other(tmp_path):
    """Batched SVDs side by side starve a pool of few threads."""
    assert command("--theorem", "3", "--seeds", "16", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_all(tmp_path):
    done = command("--all", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "runs/toy").glob("*.png"))) == len(list((tmp_path / "runs/toy").glob("*.json"))) == 12


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path):
    done = command("--theorem", "4", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dcjax: --theorem must be 1, 2 or 3, found '4'\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give a statement: --lemma, .* found none"),
        (["--theorem", "one"], "--theorem must be 1, 2 or 3, found 'one'"),
        (["--corollary", "3"], "--corollary must be 1 or 2, found '3'"),
        (["--figure", "2"], "--figure must be 3, 4, 5 or 6, found '2'"),
        (["--theorem", "1", "--dim", "0"], "--dim must be at least 2, found 0"),
        (["--theorem", "1", "--seeds", "0"], "--seeds must be at least 1, found 0"),
        (["--theorem", "1", "--seed", "-1"], "--seed must be at least 0, found -1"),
        (["--theorem", "1", "--seed", "4294967295"], r"--seed must be below 2\^32"),
        (["--theorem", "1", "--steps", "0"], "--steps must be at least 1, found 0"),
        (["--theorem", "1", "--steps", "x"], "--steps.*invalid int value: 'x'"),
        (["--figure", "6", "--depth", "0"], "--depth must be at least 1, found 0"),
        (["--theorem", "1", "--amplitude", "-2"], "--amplitude must be from 0 to 1000, found -2"),
        (["--theorem", "1", "--amplitude", "nan"], "--amplitude must be from 0 to 1000, found nan"),
        (["--theorem", "1", "--amplitude", "1", "2"], "--amplitude takes several values in figure 3 alone, found 2"),
        (
            ["--theorem", "1", "--depth", "2"],
            "--depth has no use in theorem 1, which takes --seed, --seeds, --dim, --amplitude",
        ),
        (["--theorem", "1", "--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=message):
        main(flags)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_small_models_leave_no_traceback(tmp_path, dim):
    """Not every claim holds of models so small, but each is put to the test and reported."""
    done = command("--all", "--dim", str(dim), "--seeds", "2", "--steps", "300", cwd=tmp_path)
    assert done.returncode in (0, 1)
    assert done.stderr.count("\n") == done.returncode
    assert "Summary" in done.stdout


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SettingError, match=r"--out '.*file/deeper' cannot be written \(.*\); give a folder that can be"
    ):
        main(["--lemma", "1", "--out", str(tmp_path / "file/deeper")])
