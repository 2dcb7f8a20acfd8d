"""Manifests: what is damaged, what cannot be read, and manifests made to do harm."""

import errno
import hashlib
import json
import os

import pytest

from dcjax import verify
from dcjax.runtime.errors import SettingError
from dcjax.training import manifest
from dcjax.training.manifest import adopt, check_step, check_steps, step_folders, write_manifest


@pytest.fixture
def step(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "RETRY_SECONDS", (0.0,))
    monkeypatch.setattr(manifest, "EIO_SECONDS", (0.0, 0.0))
    folder = tmp_path / "checkpoints" / "4"
    for name in ("a", "config/metadata", "state/d/0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"name": name}))
    write_manifest(folder, step=4, config={"seed": 1})
    return folder


def rewrite(folder, change):
    """Changes the content of a manifest and gives it the hash that fits."""
    content = json.loads((folder / "manifest.json").read_text())["manifest"]
    change(content)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"manifest": content, "sha256": digest}))


def failing(monkeypatch, function, number, times):
    """Lets a function of `os` fail that many times for the files a and manifest.json; returns the calls that failed."""
    original, calls = getattr(os, function), []

    def fail(path, *args, **options):
        if str(path).endswith(("/a", "/manifest.json")) and len(calls) < times:
            calls.append(path)
            raise OSError(number, os.strerror(number))
        return original(path, *args, **options)

    monkeypatch.setattr(os, function, fail)
    return calls


@pytest.mark.parametrize("function", ["stat", "open"])
@pytest.mark.parametrize("name", ["EACCES", "ESTALE", "EMFILE", "ENOMEM"])
def test_a_step_that_cannot_be_read_may_be_whole(step, monkeypatch, function, name, capsys):
    number = getattr(errno, name)
    failing(monkeypatch, function, number, times=10**6)
    check = check_step(step)
    assert check.unreadable
    assert check.problem.endswith(f"cannot be read ({os.strerror(number)})")
    assert [check.step for check in check_steps(step.parent.parent)] == [4]
    with pytest.raises(SettingError, match=r"^1 of 1 checkpoints in .* not readable now: 4$"):
        verify.main([str(step.parent.parent)])
    assert "cannot be read" in capsys.readouterr().out


def test_it_is_tried_once_more(step, monkeypatch):
    calls = failing(monkeypatch, "stat", errno.ESTALE, times=1)
    assert check_step(step) == check_step(step)
    assert len(calls) == 1
    assert not check_step(step).problem


def test_damage_outweighs_what_cannot_be_read(step, monkeypatch):
    failing(monkeypatch, "stat", errno.EIO, times=10**6)
    check = check_step(step)
    assert (check.unreadable, check.problem) == (False, f"a cannot be read ({os.strerror(errno.EIO)})")
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "RETRY_SECONDS", (0.0,))
    monkeypatch.setattr(manifest, "EIO_SECONDS", (0.0, 0.0))
    failing(monkeypatch, "stat", errno.EACCES, times=10**6)
    (step / "state" / "d" / "0").unlink()
    check = check_step(step)
    assert (check.unreadable, check.problem) == (False, "state/d/0 is missing, and 1 more")
    (step / "manifest.json").unlink()
    assert not check_step(step).unreadable


def test_a_folder_that_may_not_be_listed_is_one_line(step, monkeypatch):
    def fail(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(manifest.pathlib.Path, "is_dir", fail)
    with pytest.raises(SettingError, match=r"checkpoints cannot be read \(Permission denied\)"):
        step_folders(step.parent.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(step=-1),
        lambda content: content.update(step=2**63),
        lambda content: content.update(step=True),
        lambda content: content.update(step="\x1b[2J"),
        lambda content: content.update(files=[]),
        lambda content: content.update(versions={"jax": "9" * 101}),
        lambda content: content.update(versions={"jax": 1}),
        lambda content: content.update(config_sha256="\x1b[2J" + "0" * 60),
        lambda content: content["files"]["a"].update(size=-1),
        lambda content: content["files"]["a"].update(size=1.5),
        lambda content: content["files"]["a"].update(sha256="0" * 63),
        lambda content: content["files"].update({"../a": content["files"]["a"]}),
        lambda content: content["files"].update({"/etc/passwd": content["files"]["a"]}),
        lambda content: content["files"].update({"": content["files"]["a"]}),
        lambda content: content["files"].update({"a\0": content["files"]["a"]}),
        lambda content: content["files"].update({"\ud800": content["files"]["a"]}),
        lambda content: content["files"].update({"x" * 5000: content["files"]["a"]}),
        lambda content: content.pop("versions"),
    ],
)
def test_a_manifest_of_other_types_is_none(step, change):
    rewrite(step, change)
    check = check_step(step)
    assert check.problem.startswith("its manifest.json is no manifest (its ")
    assert check.problem.isprintable()


def test_what_a_manifest_names_is_printed_in_one_short_line(step, capsys):
    def change(content):
        files = content["files"]
        files["\x1b[2J\n" + "x" * 3000] = files.pop("a")
        content["versions"]["jax"] = "\x1b[2J\n"

    rewrite(step, change)
    with pytest.raises(SettingError) as error:
        verify.main([str(step.parent.parent)])
    _, line = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert str(error.value).isprintable()
    assert len(line) < 600
    assert line.endswith(" cannot be read (File name too long)")


def test_a_full_disk_leaves_no_half_manifest(step, monkeypatch):
    (step / "manifest.json").unlink()

    def fail(*names):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SettingError, match=r"cannot get a manifest \(No space left"):
        adopt(step)
    assert not list(step.glob("manifest.json*"))
    monkeypatch.undo()
    (step / "manifest.json.partial").write_text("{")  # of a process that was killed
    adopt(step)
    assert not check_step(step).problem
