"""The command `dcjax collapse`: files, runs, weights; verdicts as exit statuses; mistakes in one line."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, new_process

from dcjax.collapse import METRICS, metrics, spectrum
from dcjax.collapse.__main__ import main
from dcjax.runtime.errors import SettingError

RNG = np.random.default_rng(0)
FULL = RNG.normal(size=(300, 16)).astype(np.float32)
FLAT = FULL.copy()
FLAT[:, 10:] = FULL[:, :6]


class Left(Exception):
    """In place of the end of the process."""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with files; returns its exit status, its output and its last line of errors."""

    def leave(status, message):
        raise Left(status, message)

    monkeypatch.setattr("dcjax.runtime.cli.leave", leave)
    monkeypatch.setattr("dcjax.collapse.quantities.DIRECTIONS", 8)  # a tenth of the time
    monkeypatch.chdir(tmp_path)
    for name, array in (("full", FULL), ("flat", FLAT), ("few", FULL[:10]), ("same", np.ones((20, 4)))):
        np.save(f"{name}.npy", array)

    def run(*argv):
        try:
            main(argv)
        except Left as end:
            return *end.args[:1], capsys.readouterr().out, end.args[1]
        return 0, capsys.readouterr().out, ""

    return run


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        (["full.npy"], 0, ""),
        (["flat.npy"], 1, "collapsed: flat.npy"),
        (["same.npy", "full.npy"], 1, "collapsed: same.npy"),
        (["few.npy"], 3, "undetermined: few.npy"),
        (["few.npy", "flat.npy"], 1, "collapsed: flat.npy; undetermined: few.npy"),
    ],
)
def test_the_exit_status_is_the_verdict(call, files, status, message):
    found, text, said = call(*files)
    assert (found, said) == (status, message)
    assert text.count("verdict: ") == len(files)
    assert text.count("next: ") == len([file for file in files if file != "full.npy"])


def test_the_table(call):
    _, text, _ = call("flat.npy")
    assert "flat.npy: 300 rows of 16, float32" in text
    assert "verdict: dimensional collapse; 6 of 16 eigenvalues are at or below 1e-06 of the largest" in text
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.split()[:1] and line[:2] == "  "}
    for name, value in metrics(FLAT).items():
        assert float(rows[name]) == pytest.approx(value, rel=1e-3), name


def test_views_labels_local_and_a_plot(call):
    np.save("views.npy", FLAT + 0.01)
    np.savetxt("labels.csv", np.arange(300) % 3, fmt="%d")
    status, text, _ = call(
        "flat.npy", "--views=views.npy", "--labels=labels.csv", "--local=4", "--plot=out.png", "--tolerance=1e-3"
    )
    assert status == 1
    for name in ("lidar", "alignment", "nc1", "cdnv"):
        assert f"  {name} " in text
    assert "local: effective rank" in text
    assert "4 k-means cells" in text
    with open("out.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_json(call):
    status, text, _ = call("flat.npy", "few.npy", "--json", "--local", "2")
    assert status == 1
    first, second = json.loads(text)
    assert first["verdict"]["kind"] == "dimensional"
    assert first["verdict"]["collapsed"] == 6
    np.testing.assert_allclose(first["eigenvalues"], spectrum(FLAT), rtol=1e-5, atol=1e-20)
    assert first["metrics"].keys() == metrics(FLAT).keys()
    assert (second["rows"], second["columns"], second["verdict"]["kind"]) == (10, 16, "undetermined")
    assert sum(first["local"]["sizes"]) == 300


def test_intervals(call):
    _, text, _ = call("full.npy", "--intervals", "--json")
    (record,) = json.loads(text)
    interval = record["intervals"]["participation_ratio"]
    assert interval["low"] < record["metrics"]["participation_ratio"] < interval["high"]


def test_rows_that_are_not_finite_are_counted(call):
    z = FULL.copy()
    z[3, 2], z[200] = np.nan, np.inf
    np.save("holes.npy", z)
    status, text, _ = call("holes.npy")
    assert status == 0
    assert "holes.npy: 300 rows of 16" in text
    assert "2 rows with NaN or inf were left out" in text


def test_several_matrices_of_a_file(call):
    np.savez("both.npz", r=FULL, z=FLAT, labels=np.arange(300))
    status, text, message = call("both.npz")
    assert (status, message) == (1, "collapsed: both.npz:z")
    assert "both.npz:r: 300 rows" in text


def test_a_large_file_is_sampled_and_says_so(call):
    _, text, _ = call("full.npy", "--sample=100")
    line = next(line for line in text.splitlines() if line.startswith("  uniformity "))
    assert line.endswith("of 100 rows")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["full.npy", "missing.npy"], "^missing.npy: no such file or folder"),
        (["full.npy", "--labels=no.txt"], "^no.txt: no such file or folder"),
        (["full.npy", "--tolerance=2"], r"^tolerance must be in \[0, 1\), found 2"),
        (["full.npy", "--views=few.npy"], "few.npy has 10 rows of 16, full.npy has 300 rows of 16"),
        (["full.npy", "--labels=short.txt"], "^--labels needs a label for each of the 300 rows, found 2"),
        (["full.npy", "few.npy", "--views=few.npy"], "^--views goes with one FILE"),
        (["full.npy", "few.npy", "--labels=few.npy"], "^--labels goes with one FILE"),
        (["full.npy", "--labels=full.npy"], "^full.npy needs one array"),
        (["full.npy", "--local=200"], "^cells must be from 1 to 100"),
        (["full.npy", "--local=0"], "^--local must be at least 1 cell, found 0"),
        (["full.npy", "--plot=out.pdf"], "^--plot must name a .png file in an existing folder, found out.pdf"),
        (["full.npy", "--plot=nowhere/out.png"], "^--plot must name"),
        (["nan.npy"], "^z must have at least one finite row, found 20 rows, all with NaN or inf"),
        (["pickle.npy"], "pickle.npy"),
        (["."], "holds no checkpoints"),
        (["--weights", "vector.npy"], "^vector.npy"),
        (["few.npy", "--intervals"], "^a jackknife needs"),
        (["full.npy", "--sample=0"], "^--sample must be at least 1, found 0"),
        (["--weights", "full.npy", "--local"], "^--weights reports on matrices"),
        (["full.npy", "--devices=1"], "^--data_dir and --devices are for the embeddings of a run"),
        (["wide.npy"], "^wide.npy has 40,000 columns; at most 32,768"),
        (["full.npy", f"--views={'a' * 300}.npy"], "cannot be"),
        ([], "^name one FILE or more; found none"),
    ],
)
def test_mistakes(call, argv, message):
    np.save("nan.npy", np.full((20, 3), np.nan))
    np.save("vector.npy", np.zeros(5))
    with open("short.txt", "w") as file:
        file.write("a\nb\n")
    np.save("wide.npy", np.zeros((2, 40_000), np.float16))
    with open("pickle.npy", "wb") as file:
        pickle.dump([1, 2], file)
    with pytest.raises(SettingError, match=message):
        call(*argv)


def test_the_page_of_the_measures(call):
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert call("--measures")[1] in page, "write the table of docs/metrics.md again: dcjax collapse --measures"


def test_an_error_of_the_program_is_no_verdict(call, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("dcjax.collapse.report.make_report", fail)
    status, _, message = call("full.npy")
    assert (status, message[:25]) == (2, "an error of the program, ")


def test_files_of_one_name_are_told_apart(call, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(f"{folder}/z.npy", FULL if folder == "a" else FLAT)
    status, text, message = call("a/z.npy", "b/z.npy")
    assert (status, message) == (1, "collapsed: b/z.npy")
    assert "a/z.npy: 300 rows" in text


def test_weights(call):
    np.savez("model.npz", **{"a/kernel": FULL[:16, :8], "b/kernel": FULL[:8, :4], "bias": np.ones(3)})
    status, text, _ = call("--weights", "model.npz", "--plot=w.png")
    assert status == 0
    assert "model.npz: 2 matrices" in text
    assert "a/kernel -> b/kernel" in text
    (record,) = json.loads(call("--weights", "model.npz", "--json")[1])
    assert len(record["matrices"][0]["singular_values"]) == 8


def test_a_run(call, four_steps):
    """r and z of the test images, their views, and the weights."""
    workdir, _ = four_steps
    status, text, message = call(str(workdir), "--json")
    assert (status, message) in (
        (0, ""),
        (1, f"collapsed: {workdir}: r, {workdir}: z"),
        (1, f"collapsed: {workdir}: r"),
    )
    r, z = json.loads(text)
    spectra = np.load(workdir / "spectrum.npz")
    for record, name in ((r, "r"), (z, "z")):
        values = np.array(record["eigenvalues"])
        np.testing.assert_allclose(values, spectra[name], rtol=1e-5, atol=1e-12 * values[0])
        assert {name for name, metric in METRICS.items() if metric.needs == "views"} & set(record["metrics"])
        assert "nc1" in record["metrics"]
    assert "encoder/conv1/kernel" in call("--weights", str(workdir))[1]
    earlier, last = (call("--weights", str(workdir / "checkpoints" / step), "--json")[1] for step in ("2", "4"))
    assert json.loads(last)[0]["matrices"] == json.loads(call("--weights", str(workdir), "--json")[1])[0]["matrices"]
    assert json.loads(earlier)[0]["matrices"] != json.loads(last)[0]["matrices"]


def test_the_process_exits_with_the_verdict_and_needs_no_flax(tmp_path):
    np.save(tmp_path / "same.npy", np.ones((20, 4)))
    code = """
import sys
from dcjax.collapse.__main__ import main
from dcjax.runtime import cli
leave = cli.leave
def leave_and_tell(status, message):
    print([name for name in ("flax", "optax", "grain", "matplotlib") if name in sys.modules])
    leave(status, message)
cli.leave = leave_and_tell
cli.run(main, ["same.npy"])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=new_process(), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "dcjax: collapsed: same.npy\n")
    assert done.stdout.endswith("[]\n")
