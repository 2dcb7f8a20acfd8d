"""The schema of a run: every key with its type, range, default and meaning.

Config files, `--config.KEY=VALUE` flags and a run's `config.json` are all checked against these dataclasses. The module
does not import JAX, so that a mistake is reported before JAX starts. docs/config.md lists the keys; it is written by

    python -m dcjax.config > docs/config.md
"""

import ast
import contextlib
import dataclasses
import importlib
import math
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dcjax.data.recipe import Augmentation
from dcjax.runtime.errors import SettingError, unknown_name

_RECIPE = Augmentation.imagenet()  # the defaults of `augment`, so that each number is written only once

Pair = tuple[float, float]
Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Rule:
    """The help text and the constraints of a key.

    Attributes:
      help: a line for `--help` and docs/config.md.
      least, most: inclusive bounds of a number, or of each number of a tuple.
      above, below: exclusive bounds.
      choices: the allowed names.
      form: a regular expression that a text matches, and its words.
      table: `module:TABLE`, a dict whose keys are the allowed names; `check_config` imports it.
      may_change: whether a resumed run may have another value, because the key does not decide what the run trains.
    """

    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    form: tuple[str, str] = ("", "")
    table: str = ""
    may_change: bool = False


def key(default: Any, help: str, **rule: Any) -> Any:
    """A dataclass field that declares a key; `rule` holds the other fields of `Rule`."""
    return dataclasses.field(default=default, metadata={"rule": Rule(help, **rule)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder."""

    name: str = key("resnet50", "name of the encoder", table="dcjax.models:ENCODERS")
    width: float = key(1.0, "factor on all channel counts", above=0)
    stem: str = key(
        "imagenet", "imagenet: 7x7 convolution and max pool; small: 3x3 convolution", choices=("imagenet", "small")
    )
    dtype: str = key(
        "auto", "compute dtype; auto: bfloat16 on accelerators, float32 on CPU", choices=("auto", "float32", "bfloat16")
    )
    remat: bool = key(False, "recompute the inside of each residual block in the backward pass")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """The map from the representation r to the embedding z."""

    name: str = key("direct", "name of the projector", table="dcjax.models:PROJECTORS")
    d0: int = key(360, "entries of r that the loss sees, at most the width of r; 360 of 2048 in the paper", least=1)
    hidden: int = key(2048, "hidden width of the projector mlp", least=1)
    features: int = key(128, "width of z for the projectors linear and mlp", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive loss."""

    name: str = key("info_nce", "name of the loss", table="dcjax.losses:LOSSES")
    temperature: float = key(0.1, "divisor of the cosine similarities", above=0)
    block_size: str = key(
        "auto",
        "rows of a tile of the logits; none: all logits at once; auto: tiles if a device would hold many logits",
        form=(r"auto|none|[1-9]\d*", "auto, none or a whole number of at least 1"),
        may_change=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """LARS and its schedule."""

    learning_rate: float = key(
        4.8, "peak rate, here for a batch of 4096; never rescaled, so begin in proportion to the batch", above=0
    )
    warmup_epochs: float = key(10.0, "length of the linear warm-up in epochs", least=0)
    warmup_steps: int | None = key(None, "length of the warm-up in steps; replaces warmup_epochs", least=0)
    final_scale: float = key(0.001, "last learning rate as a share of the peak", least=0)
    momentum: float = key(0.9, "momentum of LARS", least=0, below=1)
    weight_decay: float = key(1e-6, "weight decay of LARS; biases and BatchNorm scales have none", least=0)
    trust_coefficient: float = key(0.001, "trust coefficient of LARS", above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images."""

    name: str = key("tfds", "kind of source", table="dcjax.data:SOURCES")
    dataset: str = key("imagenet2012", "name of the TFDS data set, for the source tfds")
    dir: str = key("", "folder of the images; empty: TFDS's own default", may_change=True)
    train_split: str = key("train", "split to train on")
    test_split: str = key("validation", "split to test on; empty: no test images")
    image_size: int = key(224, "side of a crop in pixels", least=1)
    stored_size: int = key(0, "side in pixels of stored images that all have one size; 0 if sizes vary", least=0)
    threads: int = key(16, "threads that read and decode; 0: the main thread does", least=0, may_change=True)
    max_damaged: float = key(
        0.001, "share of the images that may be damaged; each is replaced by the next one", least=0, below=1,
        may_change=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The augmentation that makes the two views."""

    crop_scale: Pair = key(_RECIPE.crop_scale, "smallest and largest area of a crop, as a share of the image's")
    crop_ratio: Pair = key(_RECIPE.crop_ratio, "smallest and largest width / height of a crop")
    interpolation: str = key(
        _RECIPE.interpolation, "interpolation of the crop, antialiased", choices=("bicubic", "bilinear")
    )
    flip: float = key(_RECIPE.flip, "probability of a mirrored view", least=0, most=1)
    jitter: float = key(_RECIPE.jitter, "probability of the colour jitter", least=0, most=1)
    brightness: float = key(_RECIPE.brightness, "strength of the brightness jitter", least=0)
    contrast: float = key(_RECIPE.contrast, "strength of the contrast jitter", least=0)
    saturation: float = key(_RECIPE.saturation, "strength of the saturation jitter", least=0)
    hue: float = key(_RECIPE.hue, "strength of the hue jitter, in turns of the colour circle", least=0, most=0.5)
    grayscale: float = key(_RECIPE.grayscale, "probability of a grey view", least=0, most=1)
    blur: Pair = key(_RECIPE.blur, "probability of a blur in the first and in the second view", least=0, most=1)
    blur_sigma: Pair = key(_RECIPE.blur_sigma, "smallest and largest sigma of the blur, in pixels", above=0)
    solarize: Pair = key(_RECIPE.solarize, "probability of solarizing the first and the second view", least=0, most=1)
    mean: Colour = key(_RECIPE.mean, "mean of the colours in [0, 1], for the normalisation")
    std: Colour = key(_RECIPE.std, "standard deviation of the colours in [0, 1], for the normalisation", above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The evaluation of the frozen encoder. A resumed run may change every key of it."""

    after_training: bool = key(False, "probe at the end of the training", may_change=True)
    cached: bool = key(
        False, "true: logistic regression on features that are computed once; false: SGD on augmented images",
        may_change=True,
    )  # fmt: skip
    epochs: int = key(100, "epochs of SGD", least=1, may_change=True)
    batch_size: int = key(256, "images per step of SGD, over all devices", least=1, may_change=True)
    eval_batch_size: int = key(
        0, "images encoded at a time, over all devices; 0: 128 for each device", least=0, may_change=True
    )
    learning_rate: float = key(0.1, "learning rate of SGD", above=0, may_change=True)
    # The paper's numbers come from a script that creates a cosine schedule and never steps it.
    schedule: str = key(
        "constant", "schedule; cosine is stepped once an epoch", table="dcjax.evaluation:SCHEDULES", may_change=True
    )
    # Torchvision's default, which the authors' probe used.
    interpolation: str = key(
        "bilinear", "interpolation of the probe's crops, antialiased", choices=("bicubic", "bilinear"), may_change=True
    )
    momentum: float = key(0.9, "momentum of SGD", least=0, below=1, may_change=True)
    weight_decay: float = key(1e-6, "weight decay of SGD", least=0, may_change=True)
    labels_per_class: int = key(
        0, "also score with this many labels of each class; 0: all labels only", least=0, may_change=True
    )
    neighbors: int = key(20, "neighbours that vote in k-NN", least=1, may_change=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The checkpoints that stay. A resumed run may change every key of it."""

    keep: int = key(2, "the newest checkpoints that are kept", least=2, may_change=True)
    keep_every_steps: int | None = key(
        None, "keep for good the checkpoints of every multiple of so many steps, beside the newest ones; none: only "
        "those", least=1, may_change=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """The monitor, which looks for collapse during the training. A resumed run may change every key of it."""

    every_steps: int | None = key(
        500, "steps from one look to the next; the first and the last step have one, too; none: no monitor", least=1,
        may_change=True,
    )  # fmt: skip
    images: int = key(
        0, "images, two views of each, over all devices; 0: twice the width of r, but 256 at least", least=0,
        may_change=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A checked config. The defaults are the paper's recipe: ImageNet, ResNet-50, DirectCLR, batch 4096, 100 epochs."""

    seed: int = key(0, "seed of parameters, order, augmentation and probe", least=0, below=2**32)
    batch_size: int = key(4096, "images per step, over all devices", least=1)
    total_epochs: float = key(100.0, "length of the run in epochs", above=0)
    total_steps: int | None = key(None, "length of the run in steps; replaces total_epochs", least=1)
    devices: int = key(0, "how many devices to use; 0: all", least=0, may_change=True)
    log_every_steps: int = key(50, "steps from one line of metrics.jsonl to the next", least=1, may_change=True)
    checkpoint_every_steps: int = key(1000, "steps from one checkpoint to the next", least=1, may_change=True)
    watchdog_seconds: float = key(
        1800.0, "a step, a batch or a checkpoint that takes longer ends the run with status 75; 0: no limit", least=0,
        may_change=True,
    )  # fmt: skip
    model: ModelConfig = ModelConfig()
    projector: ProjectorConfig = ProjectorConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    probe: ProbeConfig = ProbeConfig()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the schema.

    Attributes:
      name: its name with its section, as in `optimizer.momentum`.
      type: the type of its values.
      default: its default; no other place sets one.
      rule: its help text and constraints.
    """

    name: str
    type: Any
    default: Any
    rule: Rule

    @property
    def kind(self) -> str:
        """The type in words."""
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        if self.type == int | None:
            return "a whole number or none"
        return words.get(self.type) or f"{len(typing.get_args(self.type))} numbers"

    @property
    def range(self) -> str:
        """The allowed values in words, or the name of their table; empty if the type is the only constraint."""
        rule = self.rule
        bounds = {"above": rule.above, "at least": rule.least, "at most": rule.most, "below": rule.below}
        words = " and ".join(f"{word} {bound:.12g}" for word, bound in bounds.items() if bound is not None)
        if words and self.type == int | None:
            words += " or none"
        return words or rule.form[1] or " or ".join(rule.choices) or rule.table.replace(":", ".")

    def check(self, value: Any) -> Any:
        """Checks a value and converts it to the key's type: lists to tuples, and whole numbers to floats.

        Raises:
          SettingError: the value has another type, is out of range, or is not among `choices`.
        """
        try:
            value = _converted(value, self.type)
        except (TypeError, OverflowError):
            raise SettingError(f"{self.name} must be {self.kind}, found {value!r}") from None
        rule, numbers = self.rule, value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise SettingError(f"{self.name} must be finite, found {value}")
            if isinstance(number, int | float) and not (
                (rule.least is None or number >= rule.least)
                and (rule.most is None or number <= rule.most)
                and (rule.above is None or number > rule.above)
                and (rule.below is None or number < rule.below)
            ):
                raise SettingError(f"{self.name} must be {self.range}, found {value}")
        if rule.form[0] and not re.fullmatch(rule.form[0], str(value)):
            raise SettingError(f"{self.name} must be {self.range}, found {value}")
        if rule.choices and value not in rule.choices:
            raise unknown_name(self.name, str(value), rule.choices)
        return value

    def parse(self, text: str) -> Any:
        """The value of a command-line flag.

        Raises:
          SettingError: as `check`.
        """
        if self.type is str:
            return self.check(text)
        words = {"true": True, "false": False, "none": None}
        try:
            value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # what `literal_eval` may raise
            value = text
        return self.check(value)


def _converted(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if isinstance(value, list | tuple) and len(value) == len(kinds):
            return tuple(map(_converted, value, kinds))
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise TypeError


SECTIONS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}
KEYS = {
    name: Key(name, field.type, field.default, field.metadata["rule"])
    for section, kind in {"": Config, **SECTIONS}.items()
    for field in dataclasses.fields(kind)
    if (name := f"{section}.{field.name}".lstrip(".")) not in SECTIONS
}


def as_config_dict(config: "Config") -> ConfigDict:
    """The config as a ConfigDict, for a config file or a user to change; each key keeps its type."""
    values: dict[str, Any] = {name: {} for name in SECTIONS}
    for name, entry in KEYS.items():
        section, _, last = name.rpartition(".")
        value = getattr(getattr(config, section) if section else config, last)
        if entry.type == int | None and value is None:
            value = placeholder(int)
        (values[section] if section else values)[last] = value
    return ConfigDict(values)


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Names the section's key in an error of a lower layer, whose message begins with its own argument.

    An error whose message begins with anything else passes unchanged.

    Raises:
      SettingError: the `ValueError` of a lower layer was about a key of this section.
    """
    try:
        yield
    except ValueError as error:
        first = re.match(r"\w*", str(error))
        if first is None or f"{name}.{first[0]}" not in KEYS:
            raise
        raise SettingError(f"{name}.{error}") from error


def from_keys(values: Mapping[str, Any]) -> Config:
    """The checked config from keys with their sections (`{"model.width": 0.5}`); a missing key gets its default.

    Raises:
      SettingError: a key is unknown (the message suggests a near one), or its value has another type or is out of
        range.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in ("", *SECTIONS)}
    for name, value in values.items():
        if name not in KEYS:
            raise unknown_key(name)
        section, _, last = name.rpartition(".")
        sections[section][last] = KEYS[name].check(value)
    return Config(**sections.pop(""), **{name: SECTIONS[name](**section) for name, section in sections.items()})


def check_config(config: "ConfigDict | Config | Mapping[str, Any]") -> Config:
    """The typed form of a config.

    Raises:
      SettingError: as `from_keys`, or a name is not in its table; the tables are imported for this, and with them JAX.
    """
    if not isinstance(config, ConfigDict | Config | Mapping):
        raise SettingError(f"a config must be a ConfigDict, found {type(config).__name__}")
    checked = from_keys(flatten(config))
    for name, value in flatten(checked).items():
        if KEYS[name].rule.table:
            module, _, table = KEYS[name].rule.table.partition(":")
            known = getattr(importlib.import_module(module), table)
            if value not in known:
                raise unknown_name(name, value, known)
    return checked


def with_values(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with some keys changed; raises as `from_keys`."""
    return from_keys(flatten(config) | dict(changes))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config (ConfigDict, dataclass or mapping) as `{"a.b": value}`, with lists for tuples, as in JSON."""
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    elif dataclasses.is_dataclass(config):
        config = dataclasses.asdict(config)  # pyright: ignore[reportArgumentType]
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def unknown_key(name: str) -> SettingError:
    """The error for a key that the schema does not have."""
    if name in SECTIONS:
        inside = ", ".join(key for key in KEYS if key.startswith(f"{name}."))
        return SettingError(f"config key '{name}' is a section; set one of its keys: {inside}")
    return unknown_name("config key", name, KEYS)
