"""A full disk or a read-only folder costs a run no training, and no command an earlier file."""

import contextlib
import errno
import json
import os
import pathlib
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from helpers import ROOT, write_images
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from dcjax import pretrain
from dcjax.aot.profile import ProfiledStep
from dcjax.collapse.__main__ import main as collapse
from dcjax.collapse.plot import plot_spectra
from dcjax.config import Origin, write_config, write_origin
from dcjax.data.prepare import main as prepare
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_npz, replace_text
from dcjax.schema import Config
from dcjax.toy.statements.plot import Curve, Panel, draw_curves
from dcjax.training import logs
from dcjax.training.metrics import METRICS_FILE, MetricsWriter, read_metrics

FULL = "No space left on device"
READ_ONLY = "Read-only file system"


class Disk:
    """A small file system that can be filled, emptied and made read-only."""

    def __init__(self, path: pathlib.Path):
        self.path, self._ballast = path, path / "ballast"

    def fill(self, left: int = 0) -> None:
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(self._ballast, self._ballast.stat().st_size - left)

    def empty(self) -> None:
        self._ballast.unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.path], check=True)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()} - {"ballast"}


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def full(monkeypatch):
    """A switch: while its `on` is set, a log takes three bytes and then none, and no file can be renamed."""
    switch, write, replace = types.SimpleNamespace(on=True, torn=False), os.write, os.replace

    def failing_write(file, data):
        if not switch.on:
            return write(file, data)
        switch.torn = not switch.torn
        if switch.torn:
            return write(file, data[:3])
        raise OSError(errno.ENOSPC, FULL)

    def failing_replace(source, target):
        if switch.on:
            raise OSError(errno.ENOSPC, FULL)
        replace(source, target)

    monkeypatch.setattr(os, "write", failing_write)
    monkeypatch.setattr(os, "replace", failing_replace)
    return switch


def metrics_writer(workdir: pathlib.Path, first_step: int = 0) -> MetricsWriter:
    return MetricsWriter(workdir, first_step=first_step, kept_step=first_step, total_steps=9, batch_size=4)


def events(workdir: pathlib.Path) -> list:
    """The events of a run; fails at a record that is not whole."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            record, (check,) = data[12 : 12 + length], struct.unpack_from("<I", data, 12 + length)
            assert check == masked_crc32c(record)
            found.append(event_pb2.Event.FromString(record))
            data = data[16 + length :]
    return found


def warnings_in(text: str) -> list[str]:
    return [line[line.index("dcjax: ") :] for line in text.replace("\r", "\n").splitlines() if "dcjax: " in line]


# The logs of a run.


def check_logs(workdir: pathlib.Path, capsys, reason: str, fail, mend) -> None:
    """A run whose disk fails from step 2 to step 4: everything arrives in order, after one line for each file."""
    writer = metrics_writer(workdir)
    writer.write(1, {"loss": 1.0})
    fail()
    for step in (2, 3, 4):
        writer.write(step, {"loss": float(step), "x" * 5000: 1.0})  # longer than what a disk has left in a page
    assert (workdir / METRICS_FILE).read_text() == '{"step": 1, "loss": 1.0}\n'
    mend()
    writer.write(5, {"loss": 5.0})
    writer.close()
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2, 3, 4, 5]
    points = [event.step for event in events(workdir) if event.summary.value]
    assert sorted(set(points)) == [1, 2, 3, 4, 5]
    lines = warnings_in(capsys.readouterr().err)
    failed = f"dcjax: {METRICS_FILE} cannot be written ({reason}); the run goes on and tries again with each line"
    assert lines[0] == failed
    assert len(lines) == 2
    assert lines[1].endswith("tries again with each event")


def test_logs_on_a_full_disk(disk, capsys):
    check_logs(disk.path, capsys, FULL, disk.fill, disk.empty)


def test_logs_whose_writes_fail_halfway(tmp_path, full, capsys):
    full.on = False
    check_logs(tmp_path, capsys, FULL, lambda: setattr(full, "on", True), lambda: setattr(full, "on", False))


def test_a_run_resumes_in_a_folder_that_becomes_writable_later(disk, capsys):
    writer = metrics_writer(disk.path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0})
    writer.close()
    before = (disk.path / METRICS_FILE).read_text()
    disk.remount("ro")
    writer = metrics_writer(disk.path, first_step=2)
    writer.write(3, {"loss": 2.0})
    assert (disk.path / METRICS_FILE).read_text() == before
    disk.remount("rw")
    writer.write(4, {"loss": 2.0})
    writer.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(disk.path)] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    lines = warnings_in(capsys.readouterr().err)
    assert len(lines) == 3
    assert all(READ_ONLY in line for line in lines)


def test_lines_that_are_lost_are_counted(tmp_path, full, capsys, monkeypatch):
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    log = logs.LogFile(tmp_path / "log", unit="line")
    for piece in (b"abcd\n", b"efgh\n", b"ijkl\n"):
        log.append(piece)
    log.close()
    assert (tmp_path / "log").read_bytes() == b""
    assert warnings_in(capsys.readouterr().err)[1] == f"dcjax: log lacks 3 line(s) that could not be written ({FULL})"


def test_a_torn_line_is_taken_back_later(tmp_path, full, monkeypatch):
    log, truncate = logs.LogFile(tmp_path / "log", unit="line"), os.ftruncate

    def failing(file, size):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", failing)
    log.append(b"first line\n")
    assert (tmp_path / "log").read_bytes() == b"fir"
    monkeypatch.setattr(os, "ftruncate", truncate)
    full.on = False
    log.close()
    assert (tmp_path / "log").read_bytes() == b"first line\n"


def test_a_screen_on_a_full_disk(tmp_path, monkeypatch):
    with open("/dev/full", "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        writer = metrics_writer(tmp_path)
        writer.advance()
        writer.write(1, {"loss": 1.0})
        writer.close()
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            stream.flush()
        with contextlib.suppress(OSError):
            stream.close()
    assert len(read_metrics(tmp_path)) == 1


# Other files of a run.


ORIGIN = Origin("dcjax main", "configs/quickstart.py", {})


def test_a_new_run_needs_its_config_written(tmp_path, full):
    for write, value in ((write_config, Config()), (write_origin, ORIGIN)):
        with pytest.raises(SettingError, match=rf"\.json cannot be written \({FULL}\)"):
            write(tmp_path, value)
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_keeps_its_earlier_config(tmp_path, full, capsys):
    full.on = False
    write_config(tmp_path, Config())
    full.on = True
    write_config(tmp_path, Config(seed=7), resumed=True)
    write_origin(tmp_path, ORIGIN, resumed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == Config().seed
    assert [line.split()[1] for line in warnings_in(capsys.readouterr().err)] == ["config.json", "command.json"]


def test_spectra_that_cannot_be_written_end_no_run(tmp_path, full, capsys):
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    features = types.SimpleNamespace(r=rows, z=rows, own=20)
    components = types.SimpleNamespace(
        test_source=range(20), config=Config(), features=lambda variables, source, keep: features
    )
    state = types.SimpleNamespace(variables={})
    pretrain.write_spectrum(components, state, tmp_path)
    assert not list(tmp_path.iterdir())
    lines = warnings_in(capsys.readouterr().err)
    assert [line.split()[1] for line in lines] == ["spectrum.npz", "spectrum.png"]
    assert all(f"cannot be written ({FULL})" in line for line in lines)


def test_a_record_of_the_profiler_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    def stop():
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {tmp_path}; {FULL}")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    compiled = jax.jit(lambda state, batch: state + batch).lower(1.0, 1.0).compile()
    step = ProfiledStep(compiled, tmp_path / "profile", first=1, last=1, done=0, devices=1)
    assert step(1.0, 2.0) == 3.0
    assert step(1.0, 3.0) == 4.0
    step.close()
    (line,) = warnings_in(capsys.readouterr().err)
    assert line.startswith("dcjax: profile cannot be written (RESOURCE_EXHAUSTED")
    assert line.endswith("the run goes on, and the record is incomplete")


# What commands write.


def draw(path: pathlib.Path) -> None:
    draw_curves(path, [Panel([Curve(np.arange(1, 9))], "x", "y")])


WRITERS = {
    "text": lambda path: replace_text(path, "new" * 2000),
    "npz": lambda path: replace_npz(path, {"a": np.zeros(2000)}),
    "plot": draw,
    "spectra": lambda path: plot_spectra({"r": np.arange(9.0, 0.0, -1.0)}, path, title=""),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_an_earlier_file_stays_whole(disk, write):
    path = disk.path / "file"
    path.write_text("old")
    disk.fill(left=4096)
    with pytest.raises(OSError, match=FULL):
        write(path)
    assert path.read_text() == "old"
    assert disk.files() == {"file"}
    disk.empty()
    write(path)
    assert path.read_bytes() != b"old"
    assert disk.files() == {"file"}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, write):
    calls, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("replace") or replace(*names))
    write(tmp_path / "file")
    assert calls == ["fsync", "replace"]


def test_collapse_refuses_a_plot_that_cannot_be_written(tmp_path, full):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(50, 4)))
    with pytest.raises(SettingError, match=rf"--plot .*plot.png cannot be written \({FULL}\)"):
        collapse([str(tmp_path / "z.npy"), f"--plot={tmp_path / 'plot.png'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["z.npy"]


@pytest.mark.parametrize("left", [0, 8192, 40_960])  # the plan, a shard and the description do not fit
def test_a_preparation_goes_on_once_there_is_room(disk, tmp_path, left, capsys):
    write_images(tmp_path / "images" / "a", 6, size=48)
    command = [f"--folder={tmp_path / 'images'}", "--name=mine", f"--data_dir={disk.path}"]
    disk.fill(left=left)
    with pytest.raises(SettingError, match=f"--data_dir.* cannot be written.*{FULL}.*free some space"):
        prepare(command)
    assert not any(name.endswith(".partial") for name in disk.files())
    assert not (disk.path / "mine" / "1.0.0").exists()
    disk.empty()
    prepare(command)
    assert len(list((disk.path / "mine" / "1.0.0").glob("*.array_record-*"))) == 1


def test_a_shard_that_is_short_gets_no_name(tmp_path, monkeypatch):
    write_images(tmp_path / "images" / "a", 6, size=16)
    monkeypatch.setattr(ArrayRecordWriter, "write", lambda writer, record: None)
    with pytest.raises(SettingError, match="holds 0 records instead of 6"):
        prepare([f"--folder={tmp_path / 'images'}", "--name=mine", f"--data_dir={tmp_path / 'sets'}"])
    assert not list((tmp_path / "sets").rglob("*array_record*"))


def test_a_command_whose_output_goes_to_a_full_disk_goes_on():
    code = "from dcjax.runtime.files import forgiving_stdout\nwith forgiving_stdout():\n  print('x' * 9999, flush=True)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-c", code], env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 0
    assert process.stderr.startswith("dcjax: some of the output is lost (No space left on device)")


def test_other_commands_say_that_their_output_is_lost():
    command = [sys.executable, "-m", "dcjax", "--help"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 2
    assert (
        process.stderr == "dcjax: a file or the output cannot be written (No space left on device); free some space\n"
    )
    near, far = os.pipe()
    os.close(near)
    process = subprocess.run(command, env=env, stdout=far, stderr=subprocess.PIPE, text=True)
    os.close(far)
    assert (process.returncode, process.stderr) == (1, "")
