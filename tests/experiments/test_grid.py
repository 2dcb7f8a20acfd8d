"""The grid of runs: its plan, its results, and what it refuses to average."""

import json
import math
import pathlib
import shlex
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from helpers import ROOT, as_flags, tiny_config, write_images

from dcjax.config import load_config
from dcjax.models import PROJECTORS
from dcjax.runtime.errors import InterruptedRunError, SettingError
from dcjax.schema import check_config, flatten
from experiments import d0_sweep, figure2, figure7, grid, learning_rate, mechanism, run, subvector, table1, table2
from experiments.records import RESULTS, bare_source, code_fingerprint, read_result, rounded, write_result
from experiments.scales import ROWS, SCALES, Scale, make_config, open_data

GRIDS = (table1, table2, subvector, d0_sweep, figure2, figure7, learning_rate)


@pytest.fixture
def tiny(monkeypatch):
    """A scale of two-step runs on the digits."""
    before = flatten(load_config("configs/quickstart.py"))
    changed = {key: value for key, value in flatten(tiny_config(total_steps=2)).items() if value != before[key]}
    changed = {key: value for key, value in changed.items() if key not in ("projector.d0", "seed")}
    scale = Scale("tiny digits", "configs/quickstart.py", 32, changed, {}, 1, "a core", "here", threads=1)
    monkeypatch.setitem(SCALES, "digits", scale)
    return as_flags(tiny_config())


@pytest.mark.parametrize("scale", SCALES)
def test_every_row_has_a_config(scale):
    seen = set()
    for name, row in ROWS.items():
        config = make_config(scale, name, seed=3)
        assert config.projector.name == row.projector
        assert config.seed == 3
        assert 1 <= config.projector.d0 <= SCALES[scale].width
        check_config(config)
        seen.add((row.projector, config.projector.d0))
    assert {projector for projector, _ in seen} == set(PROJECTORS)
    assert len({d0 for _, d0 in seen}) == 5


def test_the_paper_scale_is_the_recipe():
    for name in ("none", "linear", "mlp", "direct"):
        config = make_config("paper", name, seed=0, changes={"monitor.every_steps": 500})
        assert flatten(config) == flatten(load_config(f"configs/simclr.py:{name},imagenet"))


def results_of_two_seeds(tmp_path, rows=("none", "direct")):
    """Results as runs would leave them, with made-up numbers."""
    for row in rows:
        for seed in (0, 1):
            job = run.Job("digits", row, seed)
            part = {"top1": 0.9 + 0.01 * seed, "few_label": 0.8, "knn": 0.7, "effective_rank": 20.0, "converged": True}
            result = {
                "format": 1, "row": row, "seed": seed, "config": run.run_config(job.config()), "data": "d",
                "code": "c", "platform": "cpu", "loss": [3.0, 2.0],
                "scores": {"r": part, "r[:11]": part, "r[11:]": part} if row == "direct" else {"r": part},
                "spectra": {name: [1.0, 0.5, 1e-6] for name in ("r", "r_unit", "z", "z_unit")},
            }  # fmt: skip
            write_result(job.file(tmp_path), result)
    return [run.Job("digits", row, seed).file(tmp_path) for row in rows for seed in (0, 1)]


def test_plan_and_list(tmp_path, capsys):
    results_of_two_seeds(tmp_path, rows=("none",))
    flags = ["--scale=digits", "--seeds=3", f"--results={tmp_path}", f"--work={tmp_path / 'work'}"]
    table1.main([*flags, "--dry_run"])
    printed = capsys.readouterr().out
    assert "15 runs, 2 done, 13 to run" in printed
    assert f"cost of a run: {SCALES['digits'].minutes} minutes of one CPU core" in printed
    assert f"cost of all: {10 * SCALES['digits'].minutes} minutes" in printed  # 3 of 13 are the untrained encoder
    assert "done: their results are there; --results=DIR names another folder" in printed
    table1.main([*flags, "--list", "--rows", "none", "direct"])
    printed = capsys.readouterr()
    assert f"2 of 6 results are in {tmp_path / 'runs'} already" in printed.err
    lines = [shlex.split(line) for line in printed.out.splitlines()]
    assert len(lines) == 4
    assert all(line[1:4] == ["-m", "experiments.run", "--scale=digits"] for line in lines)
    assert [line[4:6] for line in lines] == [
        [f"--row={row}", f"--seed={seed}"] for row, seed in (("direct", 0), ("direct", 1), ("none", 2), ("direct", 2))
    ]


@pytest.mark.parametrize("module", GRIDS, ids=lambda module: module.__name__)
def test_every_grid_plans_at_every_scale(module, capsys, tmp_path):
    for scale in ("laptop",) if module is learning_rate else SCALES:
        module.main([f"--scale={scale}", "--dry_run", "--seeds=1", f"--results={tmp_path}"])
        assert SCALES[scale].description in capsys.readouterr().out


@pytest.mark.parametrize("module", [table1, table2, subvector, d0_sweep, figure7, figure2], ids=lambda m: m.__name__)
def test_results_become_tables_and_figures(module, tmp_path, capsys):
    rows = {table2: ("none", "linear"), figure2: ("mlp", "linear")}.get(module, ("none", "direct"))
    rows = tuple(row for row in rows if row in module.ROWS)
    results_of_two_seeds(tmp_path, rows)
    module.main(["--scale=digits", "--seeds=2", f"--results={tmp_path}", "--rows", *rows])
    printed = capsys.readouterr().out
    name = module.__name__.rpartition(".")[2]
    table = json.loads((tmp_path / f"{name}_digits.json").read_text())
    if module is subvector:
        assert table["DirectCLR, r[:d0]"]["top1"]["mean"] == 90.5
        assert table["DirectCLR, r"]["seeds"] == 2
    else:
        assert all(ROWS[row].label in printed for row in rows)
        assert {row: table[row]["seeds"] for row in rows} == dict.fromkeys(rows, 2)
        below = table[rows[0]]["collapsed"]
        assert (below["0.001"] if module is figure7 else below) == [1, 1]
    figure = matplotlib.image.imread(tmp_path / f"{name}_digits.png")
    assert 0.01 < np.mean(figure[..., :3].min(axis=-1) < 0.9) < 0.5  # something is drawn, and not everywhere


def test_a_table_shows_means_and_intervals(tmp_path, capsys):
    results_of_two_seeds(tmp_path)
    table1.main(["--scale=digits", "--seeds=2", f"--results={tmp_path}", "--rows", "none", "direct"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| SimCLR, no projector"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # Two values one apart: t(0.975, 1) / 2 = 6.353; 1 of the 3 singular values is below the tolerance.
    assert cells[1:] == ["51.5", "90.5 ± 6.4", "80.0 ± 0.0", "70.0 ± 0.0", "20.0 ± 0.0", "1", "2", ""]
    table = json.loads((tmp_path / "table1_digits.json").read_text())
    assert table["none"]["top1"] == {"mean": 90.5, "half_width": pytest.approx(6.3531, abs=1e-4)}


def test_means_and_counts():
    mean = grid.mean_of([1.0, 2.0, 3.0])
    assert (mean.mean, mean.count) == (2.0, 3)
    assert mean.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2)
    assert grid.mean_of([5.0]).half_width == math.inf
    assert str(grid.mean_of([5.0])) == "5.0"
    assert grid.collapsed([1.0, 1e-2, 1e-5], 1e-3) == 1
    assert grid.collapsed([0.0, 0.0]) == 2  # complete collapse
    with pytest.raises(ValueError, match="not finite"):
        grid.collapsed([math.nan, 0.0])
    assert (grid.span([2, 2]), grid.span([3, 1])) == ("2", "1 to 3")
    runs = [[{"seed": s, "scores": {"r": {"top1": t}}} for s, t in row] for row in (((0, 0.9), (1, 0.8)), ((1, 0.5),))]
    difference = grid.paired_difference(*runs)
    assert (difference.mean, difference.count) == (pytest.approx(30.0), 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 0}, "format 0"),
        ({"config": {}}, "another config"),
        ({"data": "other"}, "other images"),
        ({"platform": "gpu"}, "other precisions"),
        ({"code": "other"}, "other training code"),
    ],
)
def test_results_of_another_kind_are_refused(tmp_path, change, words):
    files = results_of_two_seeds(tmp_path)
    files[1].write_text(json.dumps(json.loads(files[1].read_text()) | change))
    with pytest.raises(SettingError, match=words) as error:
        table1.main(["--scale=digits", "--seeds=2", f"--results={tmp_path}", "--rows", "none", "direct"])
    assert str(files[1]) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_result_that_was_cut_short_is_named(tmp_path):
    files = results_of_two_seeds(tmp_path)
    files[0].write_text(files[0].read_text()[:100])
    with pytest.raises(SettingError, match="cannot be read"):
        table1.main(["--scale=digits", "--seeds=2", f"--results={tmp_path}", "--rows", "none"])


def test_more_runs_want_the_code_of_the_others(tmp_path):
    results_of_two_seeds(tmp_path, rows=("none",))  # by code "c"
    with pytest.raises(SettingError, match="other training code"):
        table1.main(["--scale=digits", "--seeds=3", f"--results={tmp_path}", f"--work={tmp_path}", "--rows", "none"])


def test_what_is_run_now_does_not_push_out_what_there_was(tmp_path):
    results_of_two_seeds(tmp_path)
    table1.main(["--scale=digits", "--seeds=1", f"--results={tmp_path}", "--rows", "none"])
    table = json.loads((tmp_path / "table1_digits.json").read_text())
    assert {row: line["seeds"] for row, line in table.items()} == {"none": 2, "direct": 2}


def test_the_fingerprint_sees_code_alone(tmp_path):
    plain = 'import os\n\n\ndef f(x):\n    """Doc."""\n    # why\n    return x + 1  # how\n'
    other = 'import os\ndef f(x):\n    """Another\n    text."""\n    return x + 1\n'
    assert bare_source(plain) == bare_source(other)
    assert bare_source(plain) != bare_source(plain.replace("x + 1", "x + 2"))
    assert bare_source('a = "# no comment"\n') == 'a = "# no comment"'
    assert bare_source('class E(Exception): """Doc."""\n') == "class E(Exception):"
    assert len(code_fingerprint()) == 16
    for name, text in {"losses/a.py": "x = 1\n", "toy/b.py": "x = 1\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    before = code_fingerprint(tmp_path)
    (tmp_path / "toy/b.py").write_text("x = 2\n")
    assert code_fingerprint(tmp_path) == before
    (tmp_path / "losses/a.py").write_text("x = 2\n")
    assert code_fingerprint(tmp_path) != before
    with pytest.raises(ValueError, match="no Python files"):
        code_fingerprint(tmp_path / "nowhere")


def test_without_data_one_line_says_how_to_get_it(tmp_path):
    flags = [f"--results={tmp_path}", f"--work={tmp_path}", "--seeds=1"]
    for data in ([], [f"--data={tmp_path / 'nowhere'}"]):
        with pytest.raises(SettingError, match=r"--data.*train/<class>") as error:
            table1.main([*flags, *data])
        assert "\n" not in str(error.value)


def test_bad_flags(tmp_path):
    for flags, words in (
        (["--scale=moon"], "scale"),
        (["--rows", "direkt"], "--rows 'direkt' is not known.*direct"),
        (["--seeds=0"], "at least 1"),
        (["--jobs=0"], "at least 1"),
    ):
        with pytest.raises(SettingError, match=words):
            table1.main([*flags, f"--results={tmp_path}"])


def test_a_part_of_the_images_is_taken_by_links(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for label in "ab":
            write_images(tmp_path / "all" / split / label, 5)
    small = Scale("", "", 1, {}, {}, 1, "", "images", images_per_class=(3, 2))
    monkeypatch.setitem(SCALES, "small", small)
    for _ in range(2):
        folder = pathlib.Path(open_data("small", str(tmp_path / "all"), tmp_path))
    counts = {name: len(list((folder / name).glob("*/*.png"))) for name in ("train", "held_out", "test")}
    assert counts == {"train": 6, "held_out": 4, "test": 10}
    assert not {p.name for p in (folder / "train/a").iterdir()} & {p.name for p in (folder / "held_out/a").iterdir()}
    monkeypatch.setitem(SCALES, "small", Scale("", "", 1, {}, {}, 1, "", "images", images_per_class=(2, 3)))
    other = pathlib.Path(open_data("small", str(tmp_path / "all"), tmp_path))  # another choice is another folder
    assert len(list(other.glob("train/*/*.png"))) == 4
    assert len(list(folder.glob("train/*/*.png"))) == 6
    monkeypatch.setitem(SCALES, "small", Scale("", "", 1, {}, {}, 1, "", "images", images_per_class=(4, 2)))
    with pytest.raises(SettingError, match="holds 5 images, this scale needs 6"):
        open_data("small", str(tmp_path / "all"), tmp_path)


def test_a_run_writes_its_result_once(tiny, tmp_path, capsys, monkeypatch):
    places = {"data": None, "work": tmp_path / "work", "results": tmp_path / "results"}
    job = run.Job("digits", "direct", 1)
    run.run(job, **places)
    result = read_result(job.file(places["results"]), config=job.config())
    assert set(result["scores"]) == {"r", "r[:6]", "r[6:]"}  # 360 / 2048 of 32
    assert len(result["spectra"]["r_unit"]) == 32
    assert len(result["spectra"]["z"]) == 6
    assert len(result["loss"]) == 2
    assert result["code"] == code_fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr("experiments.run.train_and_score", None)  # would fail if it were called
        run.run(job, **places)
    assert "is done" in capsys.readouterr().out
    # Without its result the run is scored again, but not as if today's code had trained it.
    job.file(places["results"]).unlink()
    monkeypatch.setattr("experiments.run.code_fingerprint", lambda: "other")
    with pytest.raises(SettingError, match="was begun by other training code"):
        run.run(job, **places)


def test_a_setting_that_does_not_exist_is_named(tmp_path):
    for change, words in ((("foo.bar", 1), "'foo.bar' is not known"), (("batch_size", "many"), "batch_size")):
        with pytest.raises(SettingError, match=words):
            run.Job("digits", "none", 0, (change,), "group").config()
    with pytest.raises(SettingError, match="--group must be"):
        run.main(["--scale=digits", "--row=none", "--group=../x", f"--results={tmp_path}"])


def test_the_untrained_encoder_is_a_row(tiny, tmp_path):
    places = {"data": None, "work": tmp_path / "work", "results": tmp_path / "results"}
    job = run.Job("digits", "untrained", 0)
    run.run(job, **places)
    result = json.loads(job.file(places["results"]).read_text())
    assert set(result["scores"]) == {"r", "raw pixels"}
    assert result["loss"] == []
    assert len(result["spectra"]["r"]) == 32


def test_a_failed_run_leaves_the_others_and_is_told(tiny, tmp_path, capsys, monkeypatch):
    """Runs are processes of their own: one fails, the other is counted, and the command asks to be given again."""
    done = []

    def pretend(argv, **_):
        row = next(a for a in argv if a.startswith("--row="))
        if row == "--row=direct":
            return subprocess.CompletedProcess(argv, 2)
        results_of_two_seeds(tmp_path, rows=("none",))
        done.append(row)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(subprocess, "run", pretend)
    flags = ["--scale=digits", "--seeds=1", "--jobs=99", f"--results={tmp_path}", f"--work={tmp_path / 'work'}"]
    with pytest.raises(InterruptedRunError, match="1 of 2 runs are missing"):
        table1.main([*flags, "--rows", "none", "direct"])
    printed = capsys.readouterr().out
    assert done == ["--row=none"]
    assert "--jobs=99 runs share" in printed
    assert "ended with status 2" in printed
    assert "SimCLR, no projector" in printed


@pytest.mark.parametrize(
    ("jobs", "set_before", "share"),
    [(1, {}, None), (3, {}, "0.300"), (3, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2"}, None)],
)
def test_runs_at_a_time_share_the_memory_of_a_gpu(jobs, set_before, share, tiny, tmp_path, monkeypatch):
    for name in run.MEMORY:
        monkeypatch.delenv(name, raising=False)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    seen = []

    def pretend(argv, env, **_):
        seen.append(env)
        return subprocess.CompletedProcess(argv, 2)

    monkeypatch.setattr(subprocess, "run", pretend)
    flags = ["--scale=digits", "--seeds=2", f"--jobs={jobs}", f"--results={tmp_path}", f"--work={tmp_path}"]
    with pytest.raises(InterruptedRunError):
        table1.main([*flags, "--rows", "none"])
    assert [env.get("XLA_CLIENT_MEM_FRACTION") for env in seen] == [share, share]
    assert all(set_before.items() <= env.items() for env in seen)


def test_all_runs_failed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 2))
    flags = ["--scale=digits", "--seeds=1", "--rows", "none", f"--results={tmp_path}", f"--work={tmp_path}"]
    with pytest.raises(InterruptedRunError, match="all of 1 runs failed"):
        table1.main(flags)


def test_the_same_run_twice_at_once_is_refused(tiny, tmp_path):
    import fcntl

    job, work = run.Job("digits", "none", 0), tmp_path / "work"
    folder = work / "digits" / job.name
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingError, match="being run by another process"):
            run.run(job, data=None, work=work, results=tmp_path)


def test_a_mistake_ends_with_status_2(tmp_path):
    command = [sys.executable, "-m", "experiments.run", "--scale=laptop", "--row=none", f"--results={tmp_path}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("dcjax: --data is needed")
    assert process.stderr.count("\n") == 1


COMMITTED = [
    (name, scale)
    for name in ("table1", "table2", "subvector", "d0_sweep", "figure7", "figure2")
    for scale in SCALES
    if grid.output(RESULTS, name, scale, "json").exists()
]


@pytest.mark.parametrize(("name", "scale"), COMMITTED)
def test_committed_tables_are_those_of_the_committed_runs(name, scale, tmp_path):
    """The table's JSON file follows from the single runs that are committed beside it."""
    file = grid.output(RESULTS, name, scale, "json")
    (module,) = (module for module in GRIDS if module.__name__ == f"experiments.{name}")
    module.report(grid.all_results(scale, module.ROWS, RESULTS), scale, tmp_path)
    assert json.loads((tmp_path / file.name).read_text()) == json.loads(file.read_text())


def test_the_rates_are_the_best_of_the_search():
    for name, scale in SCALES.items():
        if name == "laptop_long":  # takes the rates of the shorter runs
            assert scale.learning_rates == SCALES["laptop"].learning_rates
            continue
        file = grid.output(RESULTS, "learning_rate", name, "json")
        searched = json.loads(file.read_text()) if file.exists() else {}
        best = {row: float(max(line, key=line.get)) for row, line in searched.items() if line}
        assert scale.learning_rates == best


def test_the_gradient_of_directclr(tmp_path, capsys):
    from dcjax.pretrain import pretrain

    pretrain(tiny_config(total_steps=2), tmp_path / "run")
    mechanism.main([f"--run={tmp_path / 'run'}", f"--results={tmp_path}"])
    record = json.loads((tmp_path / "mechanism.json").read_text())
    assert record["exact zeros"] == {"r": 16, "input": 0}
    gradient = np.array(record["gradient at r"])
    assert (gradient[:16] > 0).all()
    assert (gradient[16:] == 0).all()
    assert (tmp_path / "mechanism.png").stat().st_size > 5_000


def test_rounding_keeps_six_digits():
    assert rounded({"a": [1 / 3, (2.0, 1)], "b": "x"}) == {"a": [0.333333, [2.0, 1]], "b": "x"}
