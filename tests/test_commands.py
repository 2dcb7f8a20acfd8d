"""The commands: a mistake gives one clear line and exit status 2, and loses nothing."""

import importlib
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from helpers import new_process, tiny_config, write_images

import dcjax.main
import dcjax.probe
from dcjax.__main__ import COMMANDS
from dcjax.main import main
from dcjax.pretrain import pretrain
from dcjax.runtime.errors import SettingError
from dcjax.schema import KEYS

ROOT = pathlib.Path(__file__).parent.parent


def command(module, *argv, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", module, *argv], cwd=cwd, env=env, capture_output=True, text=True)


def test_a_wrong_folder_is_answered_before_jax_is_loaded(tmp_path):
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    code = """
import sys
from dcjax.probe import main
for folder, words in (("nowhere", "nowhere is no folder"), ("begun", "begun holds no complete checkpoint")):
    try:
        main([folder])
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(folder)
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=new_process(1), check=True)


@pytest.mark.parametrize(
    ("module", "argv", "message"),
    [
        ("dcjax.main", ["--config=configs/quickstrat.py"], "no file 'configs/quickstrat.py'"),
        ("dcjax.probe", ["--workdir=nowhere"], "nowhere"),
    ],
)
def test_exit_status_2_and_one_line(tmp_path, module, argv, message):
    done = command(module, *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("dcjax: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--config=configs/quickstart.py", "--config.projector.d=3"], "'projector.d'"),
        (["--config=configs/quickstart.py", "stray"], "stray"),
        (["--config=configs/quickstart.py", "--wrkdir=x"], "--wrkdir=x"),
        ([], "--config"),
        (["--config=configs/quickstart.py", "--config.projector.d0=65"], "projector.d0"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, argv, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=re.escape(named)):
        main(argv)


@pytest.mark.parametrize("module", [dcjax.main, dcjax.probe])
def test_help(module, capsys):
    with pytest.raises(SystemExit) as done:
        module.main(["--help"])
    assert done.value.code == 0
    assert "--workdir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "named", "found"),
    [
        ({"projector__name": "drect"}, "projector.name", "'drect'"),
        ({"projector__d0": 0}, "projector.d0", "0"),
        ({"projector__d0": 33}, "projector.d0", "33"),
        ({"data__name": "digit"}, "data.name", "'digit'"),
        ({"data__train_split": "training"}, "data.train_split", "'training'"),
        ({"model__name": "resnet34"}, "model.name", "'resnet34'"),
        ({"model__stem": "tiny"}, "model.stem", "'tiny'"),
        ({"model__width": 0.01}, "model.width", "0.01"),
        ({"model__dtype": "float16"}, "model.dtype", "'float16'"),
        ({"loss__name": "infonce"}, "loss.name", "'infonce'"),
        ({"loss__temperature": 0.0}, "loss.temperature", "0.0"),
        ({"loss__block_size": "0"}, "loss.block_size", "0"),
        ({"loss__block_size": "many"}, "loss.block_size", "many"),
        ({"batch_size": 15, "devices": 8}, "batch_size", "15"),
        ({"batch_size": 0}, "batch_size", "0"),
        ({"batch_size": 2000}, "batch_size", "2000"),
        ({"devices": 9}, "devices", "9"),
        ({"total_steps": 0}, "total_steps", "0"),
        ({"optimizer__warmup_steps": 4}, "warmup_steps", "4"),
        ({"optimizer__learning_rate": -1.0}, "optimizer.learning_rate", "-1.0"),
        ({"optimizer__momentum": 1.0}, "optimizer.momentum", "1.0"),
        ({"log_every_steps": 0}, "log_every_steps", "0"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps", "0"),
        ({"augment__flip": 1.5}, "augment.flip", "1.5"),
        ({"data__stored_size": 9}, "data.stored_size", "9"),
        ({"data__image_size": 0}, "data.image_size", "0"),
        ({"data__image_size": 7}, "data.image_size", "7"),
        ({"model__stem": "imagenet"}, "data.image_size", "8"),
        ({"data__max_damaged": 1.0}, "data.max_damaged", "1.0"),
        ({"data__threads": -1}, "data.threads", "-1"),
        ({"probe__schedule": "cosin"}, "probe.schedule", "'cosin'"),
        ({"probe__interpolation": "cubic"}, "probe.interpolation", "'cubic'"),
        ({"augment__interpolation": "linear"}, "augment.interpolation", "'linear'"),
        ({"probe__batch_size": 0}, "probe.batch_size", "0"),
        ({"probe__neighbors": 5000, "probe__after_training": True}, "probe.neighbors", "5000"),
        ({"optimizer__warmup_steps": None, "optimizer__warmup_epochs": 1.0}, "optimizer.warmup_epochs", "90 of 4"),
    ],
)
def test_bad_settings_are_named_before_anything_is_trained(tmp_path, settings, named, found):
    with pytest.raises(SettingError, match=rf"{re.escape(named)}.*{re.escape(found)}") as error:
        pretrain(tiny_config(**settings), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()  # nothing is left behind


def test_the_whole_of_a_message(tmp_path):
    with pytest.raises(SettingError) as error:
        pretrain(tiny_config(projector__d0=33), tmp_path / "run")
    assert str(error.value) == "projector.d0 must be from 1 to the width of the representation (32), found 33"


def test_folders_that_cannot_be_trained_on(tmp_path):
    def message_for(folder, **settings):
        config = tiny_config(data__name="folder", data__dir=str(folder), **settings)
        with pytest.raises(SettingError) as error:
            pretrain(config, tmp_path / "run")
        return str(error.value)

    assert "missing" in message_for(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "empty" in message_for(tmp_path / "empty")
    write_images(tmp_path / "untested" / "train" / "a", 20)
    assert "data.test_split" in message_for(tmp_path / "untested")
    for label in "ab":
        write_images(tmp_path / "small" / label, 4)
    assert "batch_size must be at most the 8 training images" in message_for(tmp_path / "small", data__test_split="")


def test_a_tfds_set_that_is_not_there(tmp_path):
    config = tiny_config(data__name="tfds", data__dataset="imagenet2012", data__dir=str(tmp_path))
    with pytest.raises(SettingError, match=r"imagenet2012.*not prepared"):
        pretrain(config, tmp_path / "run")


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingError, match=r"--workdir .*file/run"):
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path / 'file' / 'run'}"])
    assert (tmp_path / "file").read_text() == "in the way"


# The command `dcjax`.


def test_dcjax_lists_its_commands(tmp_path):
    done = command("dcjax", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for name, (module, about) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(about)}$", done.stdout, re.MULTILINE)
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "a command is missing; known: main, probe, verify, collapse, report, compile, prepare, toy"),
        (["prob"], "command 'prob' is not known (did you mean 'probe'?)"),
        (["main"], "--config=FILE is required"),
        (["probe"], "name one run, as RUN or as --workdir=RUN; found none"),
        (["probe", "one", "--workdir=two"], "found one and two"),
        (["probe", "nowhere"], "nowhere is no folder"),
        (["main", "--config=configs/quickstart.py", "--num_processes=2"], "--process_id belong together"),
        (["toy"], "give a statement"),
        (["prepare", "--folder=x"], "--name"),
    ],
)
def test_dcjax_starts_its_commands(tmp_path, argv, message):
    done = command("dcjax", *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_console_script_is_the_same_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"dcjax": "dcjax.__main__:main"}


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for name in KEYS:
        assert f"--config.{name} " in printed


def test_a_run_is_read_without_running_a_config(tmp_path, monkeypatch, capsys):
    """The probe's directory may hold anything: no file of it is executed."""
    pretrain(tiny_config(total_steps=1), tmp_path / "run")
    hostile = "import pathlib\npathlib.Path('executed').touch()\nraise SystemExit('executed')\n"
    for name in ("directclr", "quickstart", "simclr", "common", "__init__"):
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs" / f"{name}.py").write_text(hostile)
    code = "import helpers\nfrom dcjax.evaluation import protocol\nprotocol.load_run('run')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=new_process(1), check=True)
    monkeypatch.chdir(tmp_path)
    dcjax.probe.main(["run", "--features=all", "--labels_per_class=0", "--devices=1"])
    assert "effective rank" in capsys.readouterr().out
    assert not (tmp_path / "executed").exists()
