"""Config files: found, overridden, compared."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import pytest

from dcjax.config import add_config_flags, check_same_run, config_from_flags, find_config, load_config, markdown
from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.schema import KEYS, Config, as_config_dict, check_config, flatten, from_keys, section, with_values

ROOT = pathlib.Path(__file__).parent.parent
ARGUMENTS = {
    "quickstart": [""],
    "directclr": ["", ":imagenet", ":folder", ":cifar10", ":tiny_imagenet"],
    "simclr": [
        "",
        ":none,cifar10",
        *(
            f":{name}"
            for name in ("none", "orthogonal", "linear", "diagonal", "low_rank", "low_rank_diagonal", "direct", "mlp")
        ),
        ":random_subset,folder",
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
    """The model of the paper, trained by SimCLR's rules."""
    config = load_config("configs/directclr.py")
    assert (config.model.name, config.batch_size, config.total_epochs) == ("resnet50", 4096, 100)
    assert (config.projector.name, config.projector.d0, config.loss.temperature) == ("direct", 360, 0.1)
    # LARS: 0.3 for every 256 images of a batch, warmed up over the first tenth of the epochs.
    assert config.optimizer.learning_rate == pytest.approx(0.3 * config.batch_size / 256)
    assert config.optimizer.warmup_epochs == config.total_epochs / 10
    assert not config.probe.cached  # crops of the probe's images are new in every epoch


def test_arguments_choose_projector_and_data_set():
    config = load_config("configs/simclr.py:linear,cifar10")
    assert (config.projector.name, config.model.name, config.data.image_size) == ("linear", "resnet18", 32)
    assert load_config("configs/simclr.py:orthogonal").projector.name == "orthogonal"


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


def parse(argv):
    parser = cli.Parser(prog="test", description="")
    parser.add_argument("--workdir")
    add_config_flags(parser)
    return config_from_flags(parser, argv)


def test_overrides_have_the_types_of_the_config():
    config, flags = parse(
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
    assert (flags.config, flags.workdir) == ("configs/quickstart.py", "x")
    assert (config.batch_size, config.total_steps, config.data.name) == (64, 7, "folder")
    assert config.optimizer.learning_rate == 2.0
    assert config.augment.blur == (0.5, 0.25)
    assert config.model.remat is True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=configs/quickstrat.py"], "'configs/quickstrat.py'.*configs/quickstart.py"),
        (["--config=nowhere.py"], "'nowhere.py'"),
        (["--config=configs/simclr.py:mpl"], "'mpl'.*mlp, linear, none"),
        (["--config=configs/directclr.py:cifar"], "'cifar'.*imagenet"),
        (["--config=configs/quickstart.py:x"], "--config=configs/quickstart.py"),
        (["--config=configs/common.py"], "common.py.*get_config"),
        (["--config="], "--config"),
        (["--config=configs/quickstart.py", "--config.batchsize=3"], "'batchsize'.*'batch_size'"),
        (["--config=configs/quickstart.py", "--config.optimizer.lr=3"], "'optimizer.lr'"),
        (["--config=configs/quickstart.py", "--config.batch_size=many"], "batch_size.*many"),
        (["--config=configs/quickstart.py", "--config.model=resnet50"], "'model'.*model.name"),
        (["--config.batch_size=3"], "--config=FILE"),
        (["--config=configs/quickstart.py", "--batch_size=3"], "--batch_size=3 .did you mean --config.batch_size"),
    ],
)
def test_bad_command_lines(argv, message):
    with pytest.raises(SettingError, match=message) as error:
        parse(argv)
    assert "\n" not in str(error.value)


def test_a_config_file_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(SettingError, match=r"broken\.py: line 2: ZeroDivisionError: division by zero$"):
        load_config(str(tmp_path / "broken.py"))
    (tmp_path / "other.py").write_text("def get_config():\n    return {}\n")
    with pytest.raises(SettingError, match=r"other\.py: get_config\(\) must return a ConfigDict, found dict"):
        load_config(str(tmp_path / "other.py"))
    keys = "from configs import common\ndef get_config():\n    c = common.recipe()\n    c.batchsize = 3\n    return c\n"
    (tmp_path / "keys.py").write_text(keys)
    with pytest.raises(SettingError, match=r"keys\.py: config key 'batchsize' is not known.*'batch_size'"):
        load_config(str(tmp_path / "keys.py"))
    typo = (
        "from configs import common\ndef get_config():\n    c = common.recipe()\n    c.projecor.d0 = 3\n    return c\n"
    )
    (tmp_path / "typo.py").write_text(typo)
    with pytest.raises(SettingError, match=r"typo\.py: line 4: no key 'projecor'\. Did you mean \"projector\""):
        load_config(str(tmp_path / "typo.py"))
    (tmp_path / "typo.py").write_text(typo.replace("c.projecor.d0 = 3", "int('x')"))
    with pytest.raises(SettingError, match=r"typo\.py: line 4: ValueError: invalid literal"):
        load_config(str(tmp_path / "typo.py"))
    (tmp_path / "typo.py").write_text(typo.replace("c.projecor.d0 = 3", "c['projecor']"))
    with pytest.raises(SettingError, match=r"typo\.py: line 4: no key 'projecor'\. Did you mean"):
        load_config(str(tmp_path / "typo.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(SettingError, match=r"empty\.py.*get_config"):
        load_config(str(tmp_path / "empty.py"))


def test_only_what_does_not_change_the_training_may_change():
    config = load_config("configs/quickstart.py")
    saved = json.loads(json.dumps(config.to_dict()))
    check_same_run(saved, check_config(config))
    with config.unlocked():
        config.total_epochs, config.total_steps, config.devices = 3.0, 500, 4
        config.log_every_steps, config.checkpoint_every_steps = 1, 2
        config.data.dir, config.data.threads = "elsewhere", 2
        config.probe.epochs = 3
    check_same_run(saved, check_config(config))
    config.batch_size, config.augment.crop_scale = 64, (0.2, 1.0)
    with pytest.raises(SettingError) as error:
        check_same_run(saved, check_config(config))
    message = str(error.value)
    assert f"batch_size ({saved['batch_size']} in the checkpoint, 64 now)" in message
    assert f"augment.crop_scale ({saved['augment']['crop_scale']} in the checkpoint, [0.2, 1.0] now)" in message
    assert "total_steps" not in message


# The schema.

# A value of another type and one out of range for every key that has a range; both are told with key and value.
WRONG = {bool: "yes", int: 1.5, float: "fast", str: 3}


@pytest.mark.parametrize("name", KEYS)
def test_each_key_refuses_another_type(name):
    key = KEYS[name]
    for wrong in (WRONG.get(key.type, "1"), [1.0]):
        with pytest.raises(SettingError, match=rf"^{name} must be {key.kind}, found ") as error:
            from_keys({name: wrong})
        assert repr(wrong) in str(error.value)
    if key.type in (int, float):
        with pytest.raises(SettingError, match=f"{name} must be"):
            from_keys({name: True})


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.range and not key.rule.table])
def test_each_key_refuses_what_is_out_of_range(name):
    key, rule = KEYS[name], KEYS[name].rule
    if rule.choices:
        with pytest.raises(SettingError, match=rf"^{name} 'nonsense' is not known.*{rule.choices[0]}"):
            from_keys({name: "nonsense"})
        return
    step = 1 if key.type in (int, int | None) else 0.5
    outside = [
        *([rule.least - step] if rule.least is not None else []),
        *([rule.most + step] if rule.most is not None else []),
        *([rule.above] if rule.above is not None else []),
        *([rule.below] if rule.below is not None else []),
    ]
    count = len(key.default) if isinstance(key.default, tuple) else 0
    for value in outside:
        value = (*key.default[:-1], float(value)) if count else value
        with pytest.raises(SettingError, match=rf"^{name} must be {key.range}, found ") as error:
            from_keys({name: value})
        assert str(value) in str(error.value) or f"{value:g}" in str(error.value)


def test_numbers_must_be_finite():
    for value in (float("nan"), float("inf")):
        with pytest.raises(SettingError, match="total_epochs must be finite"):
            from_keys({"total_epochs": value})


def test_names_of_tables_are_checked_with_the_tables():
    for name in (name for name, key in KEYS.items() if key.rule.table):
        config = from_keys({name: "nonsense"})  # without an import of the table
        with pytest.raises(SettingError, match=f"{name} 'nonsense' is not known"):
            check_config(config)


def test_unknown_keys_suggest_near_ones():
    with pytest.raises(SettingError, match=r"'optimizer.momentun'.*'optimizer.momentum'"):
        from_keys({"optimizer.momentun": 0.9})


def test_the_defaults_are_the_recipe():
    config = as_config_dict(Config())
    assert check_config(config) == Config()
    config.total_steps = 7  # a placeholder in the ConfigDict
    assert check_config(config).total_steps == 7
    assert flatten(with_values(Config(), {"model.width": 2}))["model.width"] == 2.0


def test_the_schema_imports_no_jax():
    code = "import sys, dcjax.schema, dcjax.config, dcjax.main; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_list_of_keys_is_that_of_the_schema():
    found = (ROOT / "docs" / "config.md").read_text().rstrip()
    assert found == markdown(), "write it anew: python -m dcjax.config > docs/config.md"
    assert all(f"`{name}`" in found for name in KEYS)


def test_a_config_that_is_not_one_is_refused():
    for wrong in (None, 3, "configs/quickstart.py"):
        with pytest.raises(SettingError, match="a config must be a ConfigDict, found"):
            check_config(wrong)
    with pytest.raises(SettingError, match="log_every_steps must be at least 1, found 0"):
        check_config(dataclasses.replace(Config(), log_every_steps=0))


def test_a_config_file_may_set_a_part_of_the_keys(tmp_path):
    (tmp_path / "own.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'data': {'name': 'digits'}})\n"
    )
    config = load_config(str(tmp_path / "own.py"))
    config.batch_size = 8
    assert check_config(config) == with_values(Config(), {"data.name": "digits", "batch_size": 8})
    config, _ = parse([f"--config={tmp_path / 'own.py'}", "--config.seed=3"])
    assert (config.seed, config.data.name) == (3, "digits")


@pytest.mark.parametrize(
    "text", ["{[]:1}", "1" + 400 * "0", "1" + 9000 * "0", "__import__('os')", "[" * 200, "nan", ""]
)
def test_no_text_of_a_flag_ends_in_a_traceback(text):
    for name in ("optimizer.learning_rate", "augment.blur", "model.remat"):
        with pytest.raises(SettingError, match=f"^{name} must be") as error:
            KEYS[name].parse(text)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["total_epochs=1"], "total_epochs has no effect because total_steps is 300; add --config.total_steps=none"),
        (["optimizer.warmup_epochs=1"], "optimizer.warmup_epochs has no effect because optimizer.warmup_steps is 40"),
    ],
)
def test_a_key_that_would_have_no_effect_is_refused(flags, message):
    flags = [f"--config.{flag}" for flag in flags]
    with pytest.raises(SettingError, match=re.escape(message)):
        parse(["--config=configs/quickstart.py", *flags])
    config, _ = parse(["--config=configs/quickstart.py", "--config.total_epochs=1", "--config.total_steps=none"])
    assert (config.total_epochs, config.total_steps) == (1.0, None)


def test_a_checkpoint_from_before_a_key_had_its_default():
    saved = json.loads(json.dumps(dataclasses.asdict(Config())))
    del saved["augment"]["flip"]
    check_same_run(saved, Config())
    with pytest.raises(SettingError, match=r"augment\.flip \(0\.5 in the checkpoint, 0\.0 now\)"):
        check_same_run(saved, with_values(Config(), {"augment.flip": 0.0}))


def test_a_section_names_its_own_keys_only():
    with pytest.raises(SettingError, match=r"^loss\.temperature must be positive"), section("loss"):
        raise ValueError("temperature must be positive")
    with pytest.raises(SettingError, match=r"^data\.dir: cannot read"), section("data"):
        raise SettingError("dir: cannot read x")
    for message in ("could not broadcast input array", "data.dir is missing", ""):
        with pytest.raises(ValueError, match=f"^{message}$") as error, section("data"):
            raise ValueError(message)
        assert not isinstance(error.value, SettingError)
