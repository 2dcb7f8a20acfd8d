"""Config files: found, overridden, compared."""

import json
import pathlib

import pytest

from dcjax.config import check_same_run, find_config, flatten, load_config, parse_config
from dcjax.errors import SettingError

ROOT = pathlib.Path(__file__).parent.parent
ARGUMENTS = {
    "quickstart": [""],
    "directclr": ["", ":imagenet", ":folder", ":cifar10", ":tiny_imagenet"],
    "simclr": ["", ":mlp", ":linear", ":none,cifar10"],
    "projector": [
        *(
            f":{name}"
            for name in ("none", "orthogonal", "linear", "diagonal", "low_rank", "low_rank_diagonal", "direct")
        ),
        ":mlp,tiny_imagenet",
    ],
}
SPECS = [f"configs/{name}.py{argument}" for name, arguments in ARGUMENTS.items() for argument in arguments]


def test_every_shipped_config_is_tested():
    assert {file.stem for file in (ROOT / "configs").glob("*.py")} - {"common"} == set(ARGUMENTS)


@pytest.mark.parametrize("spec", SPECS)
def test_shipped_configs_load_and_have_the_same_keys(spec):
    config = load_config(spec)
    assert flatten(config).keys() == flatten(load_config("configs/directclr.py")).keys()
    json.dumps(config.to_dict())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_docstrings_tell_what_a_user_asks(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    for word in ("Command:", "Hardware:", "Time:", "Expect:"):
        assert word in text, word


def test_the_papers_recipe():
    config = load_config("configs/directclr.py")
    assert (config.model.name, config.batch_size, config.total_epochs) == ("resnet50", 4096, 100)
    assert (config.projector.name, config.projector.d0, config.loss.temperature) == ("direct", 360, 0.1)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_epochs, optimizer.final_scale) == (4.8, 10, 0.001)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.trust_coefficient) == (0.9, 1e-6, 0.001)
    assert (config.probe.epochs, config.probe.batch_size, config.probe.learning_rate) == (100, 256, 0.1)
    assert not config.probe.cached


def test_arguments_choose_projector_and_data_set():
    config = load_config("configs/simclr.py:linear,cifar10")
    assert (config.projector.name, config.model.name, config.data.image_size) == ("linear", "resnet18", 32)
    assert load_config("configs/projector.py:orthogonal").projector.name == "orthogonal"


def test_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/quickstart.py").samefile(ROOT / "configs" / "quickstart.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("def get_config(): pass")
    assert find_config("configs/quickstart.py").samefile(tmp_path / "configs" / "quickstart.py")


def test_own_configs_may_use_the_shipped_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from configs import common\n\ndef get_config():\n"
        "    config = common.recipe()\n    config.seed = 7\n    return config\n"
    )
    assert load_config("mine.py").seed == 7


def test_overrides_have_the_types_of_the_config():
    spec, config, rest = parse_config(
        [
            "--config=configs/quickstart.py",
            "--config.batch_size=64",
            "--config.optimizer.learning_rate=2",
            "--config.total_steps=7",
            "--config.data.name",
            "folder",
            "--config.augment.blur=(0.5, 0.25)",
            "--config.model.remat=true",
            "--workdir=x",
        ]
    )
    assert spec == "configs/quickstart.py"
    assert rest == ["--workdir=x"]
    assert (config.batch_size, config.total_steps, config.data.name) == (64, 7, "folder")
    assert config.optimizer.learning_rate == 2.0
    assert config.augment.blur == (0.5, 0.25)
    assert config.model.remat is True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=configs/quickstrat.py"], "no file 'configs/quickstrat.py'.*configs/quickstart.py"),
        (["--config=nowhere.py"], "no file 'nowhere.py'"),
        (["--config=configs/simclr.py:mpl"], "projector 'mpl' is not among mlp, linear, none"),
        (["--config=configs/directclr.py:cifar"], "data set 'cifar' is not known; known: imagenet"),
        (["--config=configs/quickstart.py:x"], "takes no argument, use --config=configs/quickstart.py"),
        (["--config=configs/common.py"], "has no function get_config"),
        (["--config="], "--config needs a file"),
        (
            ["--config=configs/quickstart.py", "--config.batchsize=3"],
            "'batchsize' is not known .*did you mean 'batch_size'",
        ),
        (["--config=configs/quickstart.py", "--config.optimizer.lr=3"], "'optimizer.lr' is not known"),
        (["--config=configs/quickstart.py", "--config.batch_size=many"], "batch_size.*many"),
        (["--config=configs/quickstart.py", "--config.model=resnet50"], "'model' is a section; .*model.name"),
        (["--config.batch_size=3"], "no --config=FILE is given"),
    ],
)
def test_bad_command_lines(argv, message):
    with pytest.raises(SettingError, match=message) as error:
        parse_config(argv)
    assert "\n" not in str(error.value)


def test_a_config_file_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(SettingError, match=r"broken.py: ZeroDivisionError: division by zero"):
        load_config(str(tmp_path / "broken.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(SettingError, match=r"empty\.py.*get_config"):
        load_config(str(tmp_path / "empty.py"))


def test_only_what_does_not_change_the_training_may_change():
    config = load_config("configs/quickstart.py")
    saved = json.loads(json.dumps(config.to_dict()))
    check_same_run(saved, config)
    with config.unlocked():
        config.total_epochs, config.total_steps, config.devices = 3.0, 500, 4
        config.log_every_steps, config.checkpoint_every_steps = 1, 2
        config.data.dir, config.data.threads = "elsewhere", 2
        config.probe.epochs = 3
    check_same_run(saved, config)
    config.batch_size, config.augment.crop_scale = 64, (0.2, 1.0)
    with pytest.raises(SettingError) as error:
        check_same_run(saved, config)
    message = str(error.value)
    assert "batch_size (128 in the checkpoint, 64 now)" in message
    assert "augment.crop_scale ([0.4, 1.0] in the checkpoint, [0.2, 1.0] now)" in message
    assert "total_steps" not in message
