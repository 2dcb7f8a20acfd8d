"""Config files, the flags that override them, and the config of a run, all checked against `dcjax.schema`."""

import argparse
import contextlib
import dataclasses
import inspect
import json
import pathlib
import runpy
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

import dcjax
from dcjax.runtime.errors import SettingError, printable
from dcjax.runtime.files import forgiving, refusing, replace_text
from dcjax.runtime.reading import read_json
from dcjax.schema import KEYS, SECTIONS, Config, as_config_dict, flatten, from_keys, unknown_key

CONFIG_FILE, COMMAND_FILE = "config.json", "command.json"
MAX_CONFIG_BYTES = 2**16  # twenty times a whole config.json; `flatten` joins the names in it
# The length of a run. It changes the learning-rate schedule, so `dcjax.resume.check_length` decides on a new length.
LENGTH = ("total_epochs", "total_steps")


def find_config(path: str) -> pathlib.Path:
    """The config file that a path names.

    Args:
      path: a path from the working directory, or a file like `configs/simclr.py` that ships with the package: it lies
        beside the package in a source tree, and inside it in an installed wheel.

    Returns:
      The existing file.

    Raises:
      SettingError: there is no such file; the message lists the shipped ones.
    """
    package = pathlib.Path(dcjax.__file__).parent
    for root in (pathlib.Path(), package, package.parent):
        if (root / path).is_file():
            return root / path
    shipped = sorted(p.name for root in (package.parent, package) for p in (root / "configs").glob("*.py"))
    names = ", ".join(f"configs/{name}" for name in shipped if name != "common.py")
    raise SettingError(f"--config: no file '{path}', here or among the shipped ones: {names}")


def load_config(spec: str) -> Any:
    """Runs the function `get_config` of a config file.

    Args:
      spec: `file.py`, or `file.py:argument` where `get_config` takes one.

    Returns:
      The ConfigDict, locked so that unknown keys cannot be set. (It is annotated as `Any` because type checkers take
      every access to a ConfigDict for a union of all types.)

    Raises:
      SettingError: the file is missing or fails, does not know the argument, or sets a key or a value that the schema
        does not allow.
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
        except Exception as error:
            # A config raises ValueError for an argument that it does not know.
            words = str(error) if colon and isinstance(error, ValueError) else _failure(error, str(file))
            raise SettingError(f"--config={spec}: {words}") from error
    if not isinstance(config, ConfigDict):
        raise SettingError(f"--config={spec}: get_config() must return a ConfigDict, found {type(config).__name__}")
    try:
        return as_config_dict(from_keys(flatten(config))).lock()
    except SettingError as error:
        raise SettingError(f"--config={spec}: {error}") from error


def _failure(error: Exception, file: str) -> str:
    """The error that a config file ended with, and the line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    cause = error.args[0] if isinstance(error, AttributeError) and error.args else error
    if isinstance(cause, KeyError) and cause.args:  # a ConfigDict's message, which also suggests a key
        return f"{where}no key {printable('. '.join(str(cause.args[0]).splitlines()))}"
    return f"{where}{type(error).__name__}: {printable(str(error))}"


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


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and, for every key of the schema, `--config.KEY`."""
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="the config file (required)")
    for name in ("", *SECTIONS):
        kind = SECTIONS.get(name, Config)
        group = parser.add_argument_group(
            f"config: {name}" if name else "config",
            (kind.__doc__ or "").replace("A checked config. ", "").split(". ")[0],
        )
        for entry in KEYS.values():
            if entry.name.rpartition(".")[0] == name:
                free = "a resumed run may change it" if entry.rule.may_change else ""
                about = "; ".join(filter(None, (entry.rule.help, entry.range, free)))
                group.add_argument(
                    f"--config.{entry.name}",
                    metavar="VALUE",
                    help=f"{about} (the recipe has {entry.default!r})".replace("%", "%%"),
                )


@dataclasses.dataclass(frozen=True)
class Origin:
    """The command line that a run comes from, for reports.

    Attributes:
      command: a command with the run's config, but without its folder, in which it would resume.
      config: its `--config`.
      changes: key to its value in that config file and its value in the run, where the two differ.
    """

    command: str
    config: str
    changes: dict[str, tuple[Any, Any]]


def origin_of(spec: str, base: Any, config: Config) -> Origin:
    """The origin of a config.

    Args:
      spec: the `--config` of the command.
      base: what the config file gives.
      config: the same with the flags of the command.
    """
    before, values = flatten(base), flatten(config)
    changes = {name: (before[name], value) for name, value in values.items() if before[name] != value}
    flags = [f"--config.{name}={value}" for name, (_, value) in changes.items()]
    return Origin(shlex.join(["dcjax", "main", f"--config={spec}", *flags]), spec, changes)


def config_from_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Loads the config file that a command line names and applies the `--config.KEY` flags.

    Args:
      parser: a parser with the flags of `add_config_flags`.
      argv: the arguments without the program's name.

    Returns:
      The checked config, and all flags, among them `origin`.

    Raises:
      SettingError: `--config` is missing, a key or flag is unknown, a key cannot have its value or would have no
        effect, or `load_config` fails.
    """
    flags, rest = parser.parse_known_args(argv)
    for argument in rest:
        if argument.startswith("--config."):
            raise unknown_key(argument.removeprefix("--config.").partition("=")[0])
    if rest:
        name = rest[0].removeprefix("--").partition("=")[0]
        hint = f" (did you mean --config.{name}?)" if name in KEYS else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if not flags.config:
        parser.error("--config=FILE is required, e.g. --config=configs/quickstart.py")
    texts = {name: getattr(flags, f"config.{name}") for name in KEYS}
    given = {name: KEYS[name].parse(text) for name, text in texts.items() if text is not None}
    base = load_config(flags.config)
    config = from_keys(flatten(base) | given)
    flags.origin = origin_of(flags.config, base, config)
    counts = {"total_epochs": config.total_steps, "optimizer.warmup_epochs": config.optimizer.warmup_steps}
    for epochs, steps in counts.items():
        if epochs in given and steps is not None:
            name = epochs.replace("epochs", "steps")
            raise SettingError(f"{epochs} has no effect because {name} is {steps}; add --config.{name}=none")
    return config, flags


# The config of a run.


def write_config(workdir: pathlib.Path, config: Config, *, resumed: bool = False) -> None:
    """Writes `config.json`.

    Raises:
      SettingError: it cannot be written, and the run is new or has none yet.
    """
    path = workdir / CONFIG_FILE
    with _writing(path, resumed=resumed and path.exists()):
        replace_text(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def write_origin(workdir: pathlib.Path, origin: Origin, *, resumed: bool = False) -> None:
    """Writes `command.json`, of the last command that trained the run.

    Raises:
      SettingError: it cannot be written, and the run is new.
    """
    with _writing(workdir / COMMAND_FILE, resumed=resumed):
        replace_text(workdir / COMMAND_FILE, json.dumps(dataclasses.asdict(origin), indent=2) + "\n")


def _writing(path: pathlib.Path, *, resumed: bool) -> contextlib.AbstractContextManager[None]:
    """A full disk ends a run at its start, not one that goes on."""
    if resumed:
        return forgiving(path, "the earlier one stays, and the run goes on")
    return refusing(path, remedy="free some space or name another --workdir")


def read_config(workdir: pathlib.Path) -> Config:
    """The config of the last command that trained a run; reading it executes nothing.

    Raises:
      SettingError: `config.json` is missing or damaged, lacks a key that may not change, or has one that the schema
        does not allow.
    """
    file, remedy = workdir / CONFIG_FILE, "to rewrite it, repeat the command that made the run"
    try:
        values = read_json(file, MAX_CONFIG_BYTES)
    except SettingError as error:
        raise SettingError(f"{error}; {remedy}") from error
    return from_saved(values, file, remedy=remedy)


def from_saved(values: dict[str, Any], file: pathlib.Path, *, remedy: str) -> Config:
    """The config of a run from the nested values that it saved.

    Args:
      values: the nested values.
      file: where they were read, for the message.
      remedy: what to do about an error, for the message.

    Raises:
      SettingError: a key is missing or unknown, or cannot have its value.
    """
    found = flatten(values)
    # A version of the package without a key that may change trained the same run; the others identify it.
    missing = [name for name, entry in KEYS.items() if name not in found and not entry.rule.may_change]
    if missing:
        raise SettingError(printable(f"{file} lacks {', '.join(missing[:5])}; {remedy}"))
    try:
        return from_keys(found)
    except SettingError as error:
        raise SettingError(f"{printable(f'{file}: {error}')}; {remedy}") from error


def check_same_run(saved: dict[str, Any], config: Config) -> None:
    """Refuses to continue a run under another config.

    Args:
      saved: the config in the checkpoint, nested.
      config: the config of the command.

    Raises:
      SettingError: keys differ that may not change and are not in `LENGTH`.
    """
    # A version of the package without a key trained with the default that it has now.
    old, new = flatten(Config()) | flatten(saved), flatten(config)
    free = {name for name, entry in KEYS.items() if entry.rule.may_change} | set(LENGTH)
    differing = [
        f"{name} ({old.get(name, 'absent')} in the checkpoint, {new.get(name, 'absent')} now)"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in free
    ]
    if differing:
        raise SettingError(
            f"workdir holds a run with another config: {', '.join(differing)}; use the old values or another --workdir"
        )


def markdown() -> str:
    """The text of docs/config.md, which lists all keys."""
    lines = [
        "# Config keys",
        "",
        "Any key can be set in a config file (`config.batch_size = 1024`) or on the command line "
        "(`--config.batch_size=1024`). A resumed run may change the keys marked with a star.",
    ]
    for section in ("", *SECTIONS):
        about = (SECTIONS.get(section, Config).__doc__ or "").replace("A checked config. ", "")
        lines += [
            "",
            f"## `{section}`" if section else "## The run",
            "",
            about,
            "",
            "| key | default | allowed | meaning |",
        ]
        lines.append("|---|---|---|---|")
        for name, entry in KEYS.items():
            if name.rpartition(".")[0] == section:
                star = " *" if entry.rule.may_change else ""
                allowed = f"`{entry.range}`" if entry.rule.table else entry.range or entry.kind
                default = json.dumps(entry.default)
                lines.append(f"| `{name}`{star} | `{default}` | {allowed} | {entry.rule.help} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
