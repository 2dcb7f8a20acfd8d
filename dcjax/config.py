"""Config files and the command line: finding, overriding, comparing."""

import contextlib
import inspect
import json
import pathlib
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import dcjax
from dcjax.runtime.errors import SettingError, unknown_name

CONFIG_FILE = "config.json"

# A ConfigDict. Its own type makes every access a union of all that a config could hold.
Config = Any

# The length of a run. Another one is another schedule: `dcjax.pretrain.check_length` decides about it.
LENGTH = ("total_epochs", "total_steps")

# A run may change these when it resumes: they decide where it reads and what it reports, not what it trains. A prefix
# names all keys below it.
MAY_CHANGE = (
    "log_every_steps",
    "checkpoint_every_steps",
    "data.dir",
    "loss.block_size",
    "data.max_damaged",
    "data.threads",
    "devices",
    "probe",
)


def find_config(path: str) -> pathlib.Path:
    """The config file that a path names.

    Args:
      path: a path from the working directory, or one like `configs/simclr.py` that ships with the package: beside it in
        a source tree, inside it in an installed wheel.

    Returns:
      The existing file.

    Raises:
      ValueError: no such file; the message lists the shipped ones.
    """
    package = pathlib.Path(dcjax.__file__).parent
    for root in (pathlib.Path(), package, package.parent):
        if (root / path).is_file():
            return root / path
    shipped = sorted(p.name for root in (package.parent, package) for p in (root / "configs").glob("*.py"))
    names = ", ".join(f"configs/{name}" for name in shipped if name != "common.py")
    raise SettingError(f"--config: no file '{path}', here or among the shipped ones: {names}")


def load_config(spec: str) -> Config:
    """Runs a config file's `get_config`.

    Args:
      spec: `file.py`, or `file.py:argument` where `get_config` takes one.

    Returns:
      The config, locked: unknown keys cannot be set.

    Raises:
      ValueError: a file that is missing or fails, or an argument that it does not know.
    """
    path, colon, argument = spec.partition(":")
    file = find_config(path)
    with _shipped_configs_importable():
        try:
            get_config = runpy.run_path(str(file)).get("get_config")
            if get_config is None:
                raise SettingError(f"--config={path}: the file has no function get_config()")
            if colon and not inspect.signature(get_config).parameters:
                raise SettingError(f"--config={spec}: this config takes no argument, use --config={path}")
            config = get_config(argument) if colon else get_config()
        except SettingError:
            raise
        except ValueError as error:  # what a config says of an argument that it does not know
            raise SettingError(f"--config={spec}: {error}") from error
        except Exception as error:
            raise SettingError(f"--config={spec}: {type(error).__name__}: {error}") from error
    return config.lock()


@contextlib.contextmanager
def _shipped_configs_importable() -> Iterator[None]:
    """Lets a config file say `from configs import common`, whatever the working directory."""
    package = pathlib.Path(dcjax.__file__).parent
    root = package if (package / "configs").is_dir() else package.parent
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "configs"}
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
            del sys.modules[name]
        sys.modules.update(before)


def read_config(workdir: pathlib.Path) -> Config:
    """The config of a run, as its last command had it.

    Raises:
      ValueError: `config.json` is missing or damaged.
    """
    file = workdir / CONFIG_FILE
    try:
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError("not a table of keys")
    except (OSError, ValueError) as error:
        raise SettingError(f"{file} cannot be read ({error}); the command that made the run writes it anew") from error
    config = ConfigDict(values).lock()
    missing = sorted(flatten(load_config("configs/directclr.py")).keys() - flatten(config).keys())
    if missing:
        raise SettingError(f"{file} lacks {', '.join(missing[:5])}; the command that made the run writes it anew")
    return config


def parse_config(argv: Sequence[str]) -> tuple[str | None, Config, list[str]]:
    """Takes `--config` and its overrides out of a command line.

    Args:
      argv: the arguments without the program's name.

    Returns:
      The value of `--config` and the config with `--config.key=value` overrides applied (None, None where it is not
      given), and the arguments that are left.

    Raises:
      ValueError: an unknown key (near names suggested), a value of the wrong type, or what `load_config` raises.
    """
    spec, overrides, rest = None, [], []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.lstrip("-") if flag.startswith("-") else ""
        if name == "config":
            spec = value if equals else next(arguments, "")
        elif re.match(r"config\.", name):
            overrides.append(argument if equals else f"{argument}={next(arguments, '')}")
        else:
            rest.append(argument)
    if spec == "":
        raise SettingError("--config needs a file, e.g. --config=configs/quickstart.py")
    if spec is None:
        if overrides:
            raise SettingError(f"{overrides[0]} overrides a config, but no --config=FILE is given")
        return None, None, rest
    config = load_config(spec)
    known = flatten(config)
    for override in overrides:
        key = override.lstrip("-").partition("=")[0].removeprefix("config.")
        if key not in known:
            inside = [name for name in known if name.startswith(f"{key}.")]
            if inside:
                raise SettingError(f"config key '{key}' is a section; set one of its keys: {', '.join(inside)}")
            raise unknown_name("config key", key, known)
    values = flags.FlagValues()
    argv = ["dcjax", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise SettingError(str(error).replace("\n", " ")) from error
    return spec, values.config, rest


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as `{"a.b": value}` with JSON values."""
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def check_same_run(saved: dict[str, Any], config: Config) -> None:
    """Refuses to continue a run under another config.

    Args:
      saved: the config in the checkpoint, nested.
      config: the config of the command.

    Raises:
      ValueError: keys that differ, other than those in `MAY_CHANGE` and `LENGTH`.
    """
    old, new = flatten(saved), flatten(config)
    differing = [
        f"{key} ({old.get(key, 'absent')} in the checkpoint, {new.get(key, 'absent')} now)"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(f"{key}.".startswith(f"{free}.") for free in (*MAY_CHANGE, *LENGTH))
    ]
    if differing:
        raise SettingError(
            f"workdir holds a run with another config: {', '.join(differing)}; use the old values or another --workdir"
        )
