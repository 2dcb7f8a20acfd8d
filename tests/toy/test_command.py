"""`python -m dcjax.toy`: its files, its exit status, and its answers to mistakes."""

import json
import subprocess
import sys

import jax
import matplotlib.image
import pytest
from helpers import new_process

from dcjax.runtime.errors import SettingError
from dcjax.toy.__main__ import main
from dcjax.toy.statements.claims import Report, vanishes


def command(*flags, cwd):
    argv = [sys.executable, "-m", "dcjax.toy", *flags]
    return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=new_process(optimised=True), check=False)


@pytest.fixture
def precision():
    """The command sets JAX's precision for its process, which here is that of all tests."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


def test_a_statement_prints_its_table_and_writes_its_files(tmp_path, monkeypatch, capsys, precision):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dcjax.toy.statements.lemmas.SAMPLES", (2, 8))  # as many programs
    main(["--lemma", "1", "--dim", "3", "--seeds", "2"])
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "runs/toy/lemma_1.json").read_text())
    assert numbers["holds"]
    assert numbers["options"] == {"seed": 0, "seeds": 2, "dim": 3}
    assert numbers["precision"] == "float64"
    for check in numbers["checks"]:
        (line,) = (line for line in printed.splitlines() if line.strip().startswith(check["claim"]))
        assert line.endswith("yes")
        assert check["computed"] in line
    assert matplotlib.image.imread(tmp_path / "runs/toy/lemma_1.png")[..., :3].std() > 0.01


def test_a_claim_that_fails_is_exit_status_1(tmp_path, monkeypatch, precision):
    """Statements of one claim each, in place of the real ones: the second fails."""

    def stated(name):
        def statement(*, seed=0, amplitude=2.0):
            check = vanishes("nothing", [1e-3 * amplitude], double=1e-2, single=1e-2)
            return Report("title", "statement", [check], [], lambda path: path.write_bytes(b"figure"))

        return statement

    left = []
    monkeypatch.setattr("dcjax.toy.__main__._function", stated)
    monkeypatch.setattr("dcjax.runtime.cli.leave", lambda *answer: left.append(answer))
    flags = ["--theorem", "1", "--theorem", "2", "--no-x64", "--out", str(tmp_path / "here")]
    main([*flags, "--amplitude", "1"])
    assert left == []
    main([*flags, "--amplitude", "100"])
    ((status, message),) = left
    assert status == 1
    assert message.startswith("a claim does not hold (NO in the table) in 2 of 2 statements (the bounds")
    for name in ("theorem_1", "theorem_2"):
        numbers = json.loads((tmp_path / f"here/{name}.json").read_text())
        assert not numbers["holds"]
        assert numbers["options"] == {"seed": 0, "amplitude": 100.0}
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
    ("flags", "setting", "found"),
    [
        ([], "--lemma, --theorem", "none"),
        (["--theorem", "one"], "--theorem", "one"),
        (["--corollary", "3"], "--corollary", "3"),
        (["--figure", "2"], "--figure", "2"),
        (["--theorem", "1", "--dim", "0"], "--dim", "0"),
        (["--theorem", "1", "--seeds", "0"], "--seeds", "0"),
        (["--theorem", "1", "--seed", "-1"], "--seed", "-1"),
        (["--theorem", "1", "--seed", "4294967295"], "--seed", "4294967295"),
        (["--theorem", "1", "--steps", "0"], "--steps", "0"),
        (["--theorem", "1", "--steps", "x"], "--steps", "x"),
        (["--figure", "6", "--depth", "0"], "--depth", "0"),
        (["--theorem", "1", "--amplitude", "-2"], "--amplitude", "-2"),
        (["--theorem", "1", "--amplitude", "nan"], "--amplitude", "nan"),
        (["--theorem", "1", "--amplitude", "1", "2"], "--amplitude", "2"),
        (["--theorem", "1", "--depth", "2"], "--depth", "theorem 1"),
        (["--theorem", "1", "--bogus"], "--bogus", ""),
    ],
)
def test_mistakes(tmp_path, monkeypatch, flags, setting, found):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=rf"{setting}\b.*{found}"):
        main(flags)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_small_models_leave_no_traceback(tmp_path, dim):
    """Not every claim holds of models so small, but each is put to the test and reported."""
    done = command("--all", "--dim", str(dim), "--seeds", "2", "--steps", "300", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("dcjax: ") for line in done.stderr.splitlines()) == done.returncode
    assert "Summary" in done.stdout


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"--out .*file/deeper"):
        main(["--lemma", "1", "--out", str(tmp_path / "file/deeper")])
