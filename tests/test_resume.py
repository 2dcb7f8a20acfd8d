"""Runs that stop, are killed, go on, and are refused another config or length."""

import itertools
import json
import shutil
import signal

import numpy as np
import pytest
from helpers import as_flags, assert_identical, flip, run_main, saved_state, tiny_config, write_images

from dcjax import pretrain as loop
from dcjax.components import build
from dcjax.pretrain import pretrain
from dcjax.program import make_schedule
from dcjax.runtime.errors import SettingError, StoppedRunError
from dcjax.runtime.mesh import make_mesh, replicated
from dcjax.runtime.randomness import Stream
from dcjax.training import metrics, signals
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.metrics import read_metrics, read_rows


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Two runs of 4 steps in new processes of one device: one uninterrupted, one stopped by SIGTERM at step 2.

    The process that is stopped makes the uninterrupted run first, which saves one start.
    """
    folder, config = tmp_path_factory.mktemp("processes"), tiny_config(checkpoint_every_steps=100, log_every_steps=3)
    stop_at_2 = f"""
import os, signal
from dcjax.main import main as uninterrupted
uninterrupted({[*as_flags(config), f"--workdir={folder / 'whole'}"]})
from dcjax.training.metrics import StepMetrics
push = StepMetrics.push
def push_and_stop(self, step, metrics):
    push(self, step, metrics)
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
StepMetrics.push = push_and_stop
"""
    first = run_main(folder / "stopped", config, before=stop_at_2)
    assert first.returncode == 1, first.stderr
    assert "stopped at step 2 of 4; the same command goes on" in first.stderr
    second = run_main(folder / "stopped", config)
    assert second.returncode == 0, second.stderr
    assert "resumed at step 2" in second.stdout
    assert f"next: dcjax probe {folder / 'stopped'}" in second.stdout
    return folder / "whole", folder / "stopped"


def test_a_stopped_run_goes_on_bit_for_bit_in_a_new_process(processes, four_steps):
    """The same parameters, optimiser state and log, between processes of the same devices and threads."""
    whole, stopped = processes
    states = [saved_state(workdir, 4, four_steps[1]) for workdir in (whole, stopped)]
    assert_identical(*states)
    assert int(states[0].step) == 4
    assert_same_lines(stopped, whole)
    assert [row["step"] for row in read_metrics(whole)] == [1, 3, 4]


def test_the_position_gives_the_next_batch(processes):
    _, workdir = processes
    checkpointer = Checkpointer(workdir)
    (position, _), (at_the_end, _) = (checkpointer.restore_record(step) for step in (2, 4))
    checkpointer.close()
    components = build(tiny_config())
    source = components.train_source
    assert position.pop("unlogged")["steps"] == 1  # the first step has a line of its own, lines are of 3 steps
    assert position == {"step": 2, "batch_size": 16, "seed": 0, "data": source.fingerprint}
    assert at_the_end["step"] == 4
    crops = {"views": 2, "interpolation": "bicubic"}
    loaders = [components.train_batches(source, batch_size=16, stream=Stream.ORDER, **crops) for _ in range(2)]
    loaders[0].seek(position["step"])
    for _ in range(2):
        next(loaders[1])
    assert_identical(next(loaders[0]), next(loaders[1]))
    for loader in loaders:
        loader.close()


def test_the_same_command_on_a_finished_run_changes_nothing(four_steps):
    workdir, state = four_steps
    before = (workdir / "metrics.jsonl").read_text()
    assert_identical(pretrain(tiny_config(), workdir), state)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_another_config_is_refused_with_the_differing_keys(four_steps):
    workdir, _ = four_steps
    with pytest.raises(SettingError, match=r"seed \(0 in the checkpoint, 1 now\)"):
        pretrain(tiny_config(seed=1), workdir)
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0


def test_other_images_are_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        for label in "xy":
            write_images(tmp_path / name / label / ("more" if seed else ""), 12)
    settings = {"data__name": "folder", "data__test_split": "", "total_steps": 5, "batch_size": 8}
    pretrain(tiny_config(**settings, data__dir=str(tmp_path / "a")), tmp_path / "run")
    with pytest.raises(SettingError, match=r"data.dir .* holds other images"):
        pretrain(tiny_config(**settings, data__dir=str(tmp_path / "b")), tmp_path / "run")


def test_an_interrupted_write_is_not_mistaken_for_a_checkpoint(four_steps, tmp_path):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "4")
    unfinished = workdir / "checkpoints" / "4.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:3]) + '{"step": 4, "lo')  # a line that was cut short
    assert int(pretrain(tiny_config(), workdir).step) == 4
    assert not unfinished.exists()
    assert_same_lines(workdir, four_steps[0])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path):
    """SIGKILL, which nothing can prepare for, at four moments; images of many sizes, so that the host crops them."""
    for k, label in enumerate("xy"):
        for size in (9, 12, 17, 24):
            write_images(tmp_path / "data" / label / str(size), 7, size=size, seed=k + size)
    settings = {"data__name": "folder", "data__dir": str(tmp_path / "data"), "data__test_split": ""}
    config = tiny_config(**settings, data__stored_size=0, batch_size=8, total_steps=60, checkpoint_every_steps=1)
    whole = run_main(tmp_path / "whole", config)
    assert whole.returncode == 0, whole.stderr
    killed = """
import os, signal, threading
from dcjax.training.metrics import StepMetrics
push = StepMetrics.push
def push_and_wait(self, step, metrics):
    push(self, step, metrics)
    StepMetrics.push = push
    threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()
StepMetrics.push = push_and_wait
"""
    workdir, reached = tmp_path / "killed", []
    for delay in (0.0, 0.1, 0.23, 0.4):
        process = run_main(workdir, config, before=killed.format(delay=delay))
        assert process.returncode == -signal.SIGKILL, process.stderr
        reached.append(len(read_metrics(workdir)) if workdir.joinpath("metrics.jsonl").exists() else 0)
    assert 0 < reached[-1] < 60
    process = run_main(workdir, config)
    assert process.returncode == 0, process.stderr
    sharding = replicated(make_mesh(1))
    states = []
    for folder in (workdir, tmp_path / "whole"):
        checkpointer = Checkpointer(folder)
        states.append(checkpointer.restore_saved(60, sharding))
        checkpointer.close()
    assert_identical(*states)
    assert_same_lines(workdir, tmp_path / "whole")


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(four_steps, tmp_path, capsys):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    files = (workdir / "checkpoints" / "4" / "state" / "ocdbt.process_0" / "d").iterdir()
    file = max(files, key=lambda file: file.stat().st_size)  # the one that holds the arrays
    flip(file, byte=file.stat().st_size // 2)
    assert_identical(pretrain(tiny_config(), workdir), four_steps[1])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("dcjax: checkpoint 4"))
    for words in ("checkpoint 4 is damaged (state/", "has changed)", "2 steps are repeated"):
        assert words in line
    assert (workdir / "checkpoints" / "damaged" / "4" / "state").is_dir()
    assert_same_lines(workdir, four_steps[0])


def rate_of(step, total_steps):
    """The learning rate of a step, counted from 0, after a warm-up of one step: the recipe's cosine, to 4 digits."""
    share = (step - 1) / (total_steps - 1)
    return f"{1.5 * (0.001 + 0.999 * 0.5 * (1 + np.cos(np.pi * share))):.4g}"


@pytest.mark.parametrize("change", [{"total_steps": 6}, {"total_steps": None, "total_epochs": 6 * 16 / 1437}])
def test_another_length_is_refused_where_the_rate_would_jump(four_steps, change):
    config = tiny_config()
    config.update(change)
    setting = "total_steps" if "total_epochs" not in change else "total_epochs"
    with pytest.raises(SettingError, match=setting) as error:
        pretrain(config, four_steps[0])
    for words in ("(4 steps before, 6 now)", "of step 5", "from 0.0015 to " + rate_of(4, 6), "--extend"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert json.loads((four_steps[0] / "config.json").read_text())["total_steps"] == 4


def test_a_run_is_extended_on_request_and_then_goes_on_as_it_is(four_steps, tmp_path, capsys):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    state = pretrain(tiny_config(total_steps=6), workdir, extend=True)
    assert int(state.step) == 6
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "another length" in line)
    assert "from 0.0015 to " + rate_of(4, 6) in line
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert f"{rows[4]['learning_rate']:.4g}" == rate_of(4, 6)
    # The same command resumes, with the flag and without it.
    for extend in (True, False):
        assert_identical(pretrain(tiny_config(total_steps=6), workdir, extend=extend), state)
    assert "another length" not in capsys.readouterr().out
    with pytest.raises(SettingError, match=r"total_steps gives 4 steps.* has taken 6"):
        pretrain(tiny_config(), workdir, extend=True)


def test_during_the_warm_up_another_length_moves_nothing():
    old, new = (tiny_config(total_steps=total, optimizer__warmup_steps=3) for total in (5, 9))
    schedule = make_schedule(new, images=1437)
    for step in range(4):
        loop.check_length(loop.Saved(step, old.to_dict(), {}), build(new), schedule, extend=False)
    with pytest.raises(SettingError, match="of step 5"):
        loop.check_length(loop.Saved(4, old.to_dict(), {}), build(new), schedule, extend=False)


def test_a_run_that_is_not_there_cannot_be_extended(tmp_path):
    with pytest.raises(SettingError, match="--extend"):
        pretrain(tiny_config(), tmp_path / "run", extend=True)
    assert not (tmp_path / "run").exists()


def test_the_log_of_a_stopped_run_is_that_of_the_uninterrupted_one(tmp_path, monkeypatch):
    """Lines of 3 steps. Stopped after 2 of 4 steps, within a line, or after 3, at a line, it logs the same averages."""
    config = tiny_config(log_every_steps=3, checkpoint_every_steps=100)
    pretrain(config, tmp_path / "whole")
    assert [row["step"] for row in read_metrics(tmp_path / "whole")] == [1, 3, 4]
    for stop in (2, 3):
        workdir, questions = tmp_path / str(stop), itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(signals.StopRequest, "reached", lambda _, n=questions, stop=stop: next(n) == stop)
            with pytest.raises(StoppedRunError, match=f"stopped at step {stop} of 4"):
                pretrain(config, workdir)
        assert read_metrics(workdir)[-1]["step"] == stop  # the steps before it are not lost
        pretrain(config, workdir)
        assert_same_lines(workdir, tmp_path / "whole")


def test_a_run_that_ends_after_its_last_checkpoint_has_its_whole_log(tmp_path, monkeypatch):
    """The log is on disk before the checkpoint, since a run that goes on at its last step writes no line."""
    config = tiny_config(log_every_steps=3, monitor__every_steps=4, monitor__images=64)
    wait, seen = Checkpointer.wait, []

    def waited(self):
        wait(self)
        seen.append([(row["step"], "monitor" in row) for row in read_rows(tmp_path / "run")])

    monkeypatch.setattr(Checkpointer, "wait", waited)
    pretrain(config, tmp_path / "run")
    assert seen == [[(0, True), (1, False), (3, False), (4, False), (4, True)]]


def test_a_signal_during_the_last_checkpoint_stops_the_run(tmp_path, monkeypatch):
    wait = Checkpointer.wait

    def signalled(self):
        signal.raise_signal(signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(Checkpointer, "wait", signalled)
    with pytest.raises(StoppedRunError, match="stopped at step 4 of 4"):
        pretrain(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "spectrum.npz").exists()


def test_a_checkpoint_after_an_error_is_waited_for(tmp_path, monkeypatch):
    """Before signals are answered otherwise: a SIGTERM while it is written must not lose it."""
    push, wait, waited = metrics.StepMetrics.push, Checkpointer.wait, []

    def fail(self, step, scalars):
        push(self, step, scalars)
        if step == 3:
            raise RuntimeError("a fault of the program")

    def wait_in_loop(self):
        waited.append(signal.getsignal(signal.SIGTERM) != before)
        wait(self)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(metrics.StepMetrics, "push", fail)
    monkeypatch.setattr(Checkpointer, "wait", wait_in_loop)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        pretrain(tiny_config(), tmp_path / "run")
    assert waited == [True]
    assert (tmp_path / "run" / "checkpoints" / "3" / "manifest.json").is_file()


def assert_same_lines(one, two):
    """The same lines in both folders' metrics.jsonl, but for the timing."""
    rows = [read_metrics(folder) for folder in (one, two)]
    for row in (*rows[0], *rows[1]):
        assert row.pop("images_per_second") > 0
    assert rows[0] == rows[1]
