"""Checkpoints: manifests, damage, the steps that are kept, and the command that checks them."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import threading

import numpy as np
import pytest
from helpers import flip

import dcjax
from dcjax import verify
from dcjax.main import main
from dcjax.runtime.errors import InterruptedRunError, SettingError
from dcjax.training import checkpoint, manifest, search
from dcjax.training.checkpoint import CannotSaveError, Checkpointer, open_run
from dcjax.training.manifest import adopt, check_step, write_manifest


def save(workdir, *steps, **options):
    """Checkpoints of a small state, whose values are the step; the run's folder must exist."""
    with contextlib.closing(Checkpointer(workdir, **options)) as checkpointer:
        for step in steps:
            position = {"step": step, "unlogged": {}}
            checkpointer.save(step, state={"w": np.full(64, step, np.float32)}, position=position, config={"a": 1})


def all_steps(workdir):
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        return checkpointer.all_steps()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    save(workdir, 1, 2)
    return workdir


def test_a_manifest_names_every_file(two):
    folder = two / "checkpoints" / "2"
    record = json.loads((folder / "manifest.json").read_text())["manifest"]
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    del files["manifest.json"]
    assert record["files"].keys() == files.keys()
    assert all(record["files"][name]["size"] == path.stat().st_size for name, path in files.items())
    assert record["step"] == 2
    assert {"jax", "orbax-checkpoint", "python"} <= record["versions"].keys()
    check = check_step(folder)
    assert (check.problem, check.files) == ("", len(files))


def test_every_flipped_byte_and_every_missing_file_is_found(two, tmp_path):
    """Each file, the manifest itself included: its first and its last byte, its end, and its absence."""
    names = [path.relative_to(two) for path in (two / "checkpoints" / "2").rglob("*") if path.is_file()]
    assert len(names) > 5
    folder = shutil.copytree(two, tmp_path / "run") / "checkpoints" / "2"
    for name in names:
        file = tmp_path / "run" / name
        whole = file.read_bytes()
        # The last byte of the manifest is the end of its last line, which means nothing.
        for byte in {0, len(whole) - 1 - (file.name == "manifest.json")} if whole else ():
            flip(file, byte=byte, bit=3)
            assert check_step(folder).problem, (name, byte)
            file.write_bytes(whole)
        if whole:
            file.write_bytes(whole[:-2])
            assert check_step(folder).problem, name
        file.unlink()
        assert check_step(folder).problem, name
        file.write_bytes(whole)
        assert not check_step(folder).problem


def test_the_newest_whole_step_is_used(two, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "run")
    flip(workdir / "checkpoints" / "2" / "position" / "metadata", byte=3)
    said = []
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        assert checkpointer.last_whole_step(said.append) == 1
    assert said == ["dcjax: checkpoint 2 is damaged (position/metadata has changed); step 1 is used instead"]
    assert (workdir / "checkpoints" / "2").is_dir()  # who only reads moves nothing
    checkpointer, step = open_run(workdir)
    checkpointer.close()
    assert step == 1
    with pytest.raises(SettingError, match=r"checkpoints/2 is damaged: position/metadata has changed"):
        open_run(workdir, 2)
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        assert checkpointer.last_whole_step(said.append) == 1
    assert said[1].endswith("/damaged; step 1 is used, and 1 step is repeated")
    assert (workdir / "checkpoints" / "damaged" / "2" / "position" / "metadata").is_file()
    assert all_steps(workdir) == [1]


def test_where_no_step_is_whole_nothing_is_moved(two, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "run")
    flip(workdir / "checkpoints" / "2" / "config" / "metadata", byte=0)
    (workdir / "checkpoints" / "1" / "manifest.json").unlink()
    with (
        contextlib.closing(Checkpointer(workdir)) as checkpointer,
        pytest.raises(SettingError, match=r"is whole: 2 \(config/metadata has changed\), 1 \(it has no") as error,
    ):
        checkpointer.last_whole_step()
    assert "\n" not in str(error.value)
    assert all_steps(workdir) == [1, 2]


def test_a_manifest_of_another_step_or_place_is_refused(two, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "run")
    shutil.move(workdir / "checkpoints" / "2", workdir / "checkpoints" / "3")
    assert check_step(workdir / "checkpoints" / "3").problem == "its manifest is of step 2"
    outside = tmp_path / "9"
    outside.mkdir()
    write_manifest(outside, step=9, config={})
    record = json.loads((outside / "manifest.json").read_text())
    for content in ({**record["manifest"], "files": {"../run/x": {}}}, {"step": 9}, [], None):
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        (outside / "manifest.json").write_text(json.dumps({"manifest": content, "sha256": digest}))
        assert check_step(outside).problem
    for text in ("", "{", "[" * 10**5, "null", '{"manifest": {}}'):
        (outside / "manifest.json").write_text(text)
        assert check_step(outside).problem


def test_the_newest_steps_and_multiples_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, keep_every_steps=2)
    assert all_steps(tmp_path) == [2, 4, 5]
    save(tmp_path, 6, 7, keep=3)  # without multiples
    assert all_steps(tmp_path) == [5, 6, 7]
    assert not any((tmp_path / "checkpoints" / "incomplete").iterdir())


def test_nothing_older_goes_before_the_newer_one_is_whole(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)

    def fail(folder, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", fail)
    with pytest.raises(CannotSaveError, match=r"No space left on device.*goes on from step 2") as error:
        save(tmp_path, 3)
    assert "\n" not in str(error.value)
    assert all_steps(tmp_path) == [1, 2]
    assert not any((tmp_path / "checkpoints" / "incomplete").iterdir())


def test_one_process_trains_a_run(tmp_path, monkeypatch, capsys):
    first = Checkpointer(tmp_path)
    monkeypatch.setattr(checkpoint, "LOCK_SECONDS", 0.1)
    with pytest.raises(InterruptedRunError, match="another process trains the run"):
        Checkpointer(tmp_path)
    assert "waiting up to 0.1 seconds" in capsys.readouterr().out
    monkeypatch.setattr(checkpoint, "LOCK_SECONDS", 60.0)
    threading.Timer(0.3, first.close).start()
    Checkpointer(tmp_path).close()  # once the first one has ended


def test_a_file_that_cannot_be_read_now_is_not_taken_for_damaged(two, monkeypatch):
    def unreadable(folder):
        return dataclasses.replace(check_step(folder), problem="x cannot be read (Stale file handle)", unreadable=True)

    monkeypatch.setattr(search, "check_step", unreadable)
    with contextlib.closing(Checkpointer(two)) as checkpointer:
        with pytest.raises(InterruptedRunError, match=r"cannot be read now: 2 .*Stale file handle"):
            checkpointer.last_whole_step()
        assert checkpointer.all_steps() == [1, 2]
        with monkeypatch.context() as patch:  # a mount that has gone
            patch.setattr(search.os.path, "isdir", lambda path: False)
            with pytest.raises(InterruptedRunError, match="Stale file handle"):
                checkpointer.last_whole_step()
    monkeypatch.setattr(checkpoint, "check_step", unreadable)
    with pytest.raises(InterruptedRunError, match=r"checkpoints/2 cannot be read now: x cannot be read \(Stale"):
        open_run(two, 2)


def test_a_slow_network_disk_is_asked_again(two, monkeypatch):
    """EIO comes from bad disks and from network disks that time out; the second may pass."""
    entry, left = manifest._entry, [2]

    def failing(path, **options):
        if path.parts[-2:] == ("position", "metadata") and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return entry(path, **options)

    monkeypatch.setattr(manifest, "_entry", failing)
    monkeypatch.setattr(manifest, "EIO_SECONDS", (0.0, 0.0))
    assert not check_step(two / "checkpoints" / "2").problem
    left[0] = 3
    found = check_step(two / "checkpoints" / "2")
    assert "position/metadata cannot be read (Input/output error)" in found.problem
    assert not found.unreadable


def test_an_old_step_that_cannot_be_removed_ends_nothing(tmp_path, monkeypatch, caplog):
    rename = os.rename

    def failing(source, target):
        if "removed-" in str(target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    save(tmp_path, 1, 2, 3, keep=2)
    assert all_steps(tmp_path) == [1, 2, 3]
    assert "checkpoints/1 could not be removed (Device or resource busy)" in caplog.text


@pytest.mark.parametrize(
    ("sums", "good"),
    [
        ({}, True),
        ({"steps": 2, "loss": 1.5, "gradient_norm": float("inf")}, True),
        ({"steps": "x"}, False),
        ({"steps": -2}, False),
        ({"loss": 1.0}, False),
        ({"steps": 1, "loss": [1]}, False),
        ([], False),
    ],
)
def test_sums_of_another_form_are_refused(tmp_path, sums, good):
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, state={"w": np.zeros(4)}, position={"unlogged": sums}, config={})
        checkpointer.wait()
        with contextlib.nullcontext() if good else pytest.raises(SettingError, match="of another form"):
            assert checkpointer.restore_record(1)[0] == {"unlogged": sums}


def test_an_address_is_refused_by_whatever_reads_a_run():
    for path in ("gs://bucket/run", "s3://bucket/run"):
        for read in (lambda path: verify.main([path]), dcjax.load_encoder):
            with pytest.raises(SettingError, match="is an address; name a run in a folder that is mounted here"):
                read(path)


def test_a_step_that_has_gone_is_said_to_have_gone(two, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "run")
    checkpointer, step = open_run(workdir)
    with contextlib.closing(checkpointer):
        shutil.rmtree(workdir / "checkpoints" / str(step))
        with pytest.raises(SettingError, match="has gone, as the run that is training keeps only its newest"):
            checkpointer.restore_record(step)


def test_a_step_before_another_is_looked_for_without_moving_any(two, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "run")
    flip(workdir / "checkpoints" / "1" / "position" / "metadata", byte=3)
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        assert checkpointer.whole_step_before(3) == 2
        assert checkpointer.whole_step_before(2) is None
        assert checkpointer.all_steps() == [1, 2]


def test_a_state_that_would_swell_is_refused(tmp_path, monkeypatch):
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        state = {"w": np.zeros((1 << 10, 1 << 12), np.float32)}  # 16 MB, some KB on disk
        checkpointer.save(1, state=state, position={"unlogged": {}}, config={})
        checkpointer.wait()
        with pytest.raises(SettingError, match=r"its state would take 17 MB, but it has 0 MB"):
            checkpointer.restore_saved(1, None)
        monkeypatch.setattr(checkpoint, "MAX_JSON_BYTES", 10)
        with pytest.raises(SettingError, match="has over 10 bytes"):
            checkpointer.restore_record(1)


def test_the_command_checks_and_adopts(two, tmp_path, capsys):
    workdir = shutil.copytree(two, tmp_path / "run")
    verify.main([str(workdir)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "1", "2"]
    assert all(line.endswith("whole") for line in lines[1:])
    (workdir / "checkpoints" / "1" / "manifest.json").unlink()
    with pytest.raises(SettingError, match=r"1 of 2 checkpoints in .* not whole: 1"):
        verify.main([str(workdir)])
    assert "it has no manifest.json" in capsys.readouterr().out
    verify.main([f"--workdir={workdir}", "--adopt"])
    (workdir / "checkpoints" / "1" / "manifest.json").unlink()
    (workdir / "checkpoints" / "1" / "config" / "metadata").write_text("[]")
    with pytest.raises(SettingError, match="cannot get a manifest"):
        adopt(workdir / "checkpoints" / "1")
    with pytest.raises(SettingError, match="is no folder"):
        verify.main([str(tmp_path / "none")])
    with pytest.raises(SettingError, match="holds no checkpoints"):
        verify.main([str(tmp_path)])


def test_an_encoder_of_a_damaged_step_is_refused(four_steps, tmp_path, capsys):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    flip(workdir / "checkpoints" / "4" / "state" / "_METADATA", byte=9)
    with pytest.raises(SettingError, match="state/_METADATA has changed"):
        dcjax.load_encoder(workdir / "checkpoints" / "4")
    assert dcjax.load_encoder(workdir).step == 2
    printed = capsys.readouterr()
    assert "step 2 is used instead" in printed.err
    assert not printed.out  # which may be a command's JSON


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("checkpoint.keep=1", "checkpoint.keep must be at least 2, found 1"),
        ("checkpoint.keep_every_steps=0", "checkpoint.keep_every_steps must be at least 1 or none, found 0"),
        (
            "checkpoint.keep_every_steps=200",
            "keep_every_steps must be a multiple of checkpoint_every_steps, which is 150, e.g. 150; found 200",
        ),
        ("watchdog_seconds=-1", "watchdog_seconds must be at least 0, found -1"),
        ("watchdog_seconds=nan", "watchdog_seconds must be a number, found 'nan'"),
        ("checkpoint.kep=3", "config key 'checkpoint.kep' is not known (did you mean 'checkpoint.keep'?)"),
    ],
)
def test_settings_that_are_wrong(tmp_path, flag, problem):
    with pytest.raises(SettingError) as error:
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", f"--config.{flag}"])
    assert problem in str(error.value)
