"""The rows of the experiments, and the scales at which they are run: the same code, another config."""

import contextlib
import dataclasses
import hashlib
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dcjax.config import load_config
from dcjax.runtime.errors import SettingError, unknown_name
from dcjax.schema import flatten


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of run.

    Attributes:
      label: its name in tables and figures.
      projector: the value of `projector.name`.
      d0: d0 as a share of the representation; None for the paper's share.
      trained: False for the encoder before its first step.
      paper: linear top-1 on ImageNet in percent that the paper reports; None where it reports none.
    """

    label: str
    projector: str
    d0: float | None = None
    trained: bool = True
    paper: float | None = None


# The keys name the files of results. The rows are those of the paper's Tables 1 and 2 and of its section 6.
ROWS = {
    "none": Row("SimCLR, no projector", "none", paper=51.5),
    "linear": Row("SimCLR, linear projector", "linear", paper=61.1),
    "mlp": Row("SimCLR, 2-layer projector", "mlp", paper=66.5),
    "direct": Row("DirectCLR", "direct", paper=62.7),
    "orthogonal": Row("orthogonal projector", "orthogonal", paper=52.2),
    "diagonal": Row("trainable diagonal projector", "diagonal", paper=60.2),
    "low_rank": Row("fixed low-rank projector", "low_rank", paper=62.3),
    "low_rank_diagonal": Row("fixed low-rank diagonal projector", "low_rank_diagonal", paper=62.7),
    "random_subset": Row("random subvector, redrawn every step", "random_subset", paper=43.0),
    "untrained": Row("untrained encoder", "none", trained=False),
    **{f"direct_{n}_of_32": Row(f"DirectCLR, d0 = {n}/32 of r", "direct", d0=n / 32) for n in (1, 3, 12, 20)},
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where and how long the rows are trained.

    Attributes:
      description: a line for tables.
      base: the config file that it starts from, with the projector's name as its argument where it takes one.
      width: entries of r.
      changes: config key to value, over that config.
      learning_rates: projector to the rate that `experiments.learning_rate` found; others take the config's.
      minutes: how long one run takes, in minutes of `processor`.
      processor: a processor, and the source of the minutes if they were not measured.
      data: how to get the images, or where they come from.
      images_per_class: how many training images of a class to train on, and how many more to hold out for the choice of
        the rate; None to train on all.
      threads: how many CPU threads a run takes; 0 for all.
    """

    description: str
    base: str
    width: int
    changes: Mapping[str, Any]
    learning_rates: Mapping[str, float]
    minutes: float
    processor: str
    data: str
    images_per_class: tuple[int, int] | None = None
    threads: int = 0


CIFAR10 = (
    "class folders of CIFAR-10's images: --data=DIR with DIR/train/<class>/*.png and DIR/test/<class>/*.png "
    "(or .jpg); any other photographs in that layout do, too"
)

TINY_IMAGENET = (
    "cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked; put its validation images into class folders with "
    "`cd DIR/val && while read -r file class _; do mkdir -p $class && mv images/$file $class; done < "
    "val_annotations.txt && rmdir images`; then --data=DIR"
)


GPU_SPEED = 5e13  # FLOP/s, a guess at what a run reaches


def gpu_scale(encoder: str, data_set: str, *, epochs: int, operations: float) -> Scale:
    """A scale whose runs are planned to take less than an hour of one GPU.

    Args:
      encoder: `resnet18` or `resnet50`.
      data_set: `cifar10` or `tiny_imagenet`, as class folders.
      epochs: of pre-training, a tenth of them warm-up as in the paper.
      operations: floating-point operations of the training: those of a forward pass (XLA's cost analysis) times 3 for
        the gradient (4 where it computes the forward pass again), 2 views and the images of all epochs.
    """
    name, data, size = {"cifar10": ("CIFAR-10", CIFAR10, 32), "tiny_imagenet": ("Tiny-ImageNet", TINY_IMAGENET, 64)}[
        data_set
    ]
    width = {"resnet18": 512, "resnet50": 2048}[encoder]
    return Scale(
        description=f"{name} at {size} px, ResNet-{encoder.removeprefix('resnet')} ({width}-d r), {epochs} epochs",
        base=f"configs/simclr.py:{{projector}},{data_set}",
        width=width,
        changes={
            "model.name": encoder,
            "projector.hidden": width,
            "data.name": "folder",
            "total_epochs": float(epochs),
            "optimizer.warmup_epochs": epochs / 10,
            "probe.labels_per_class": 10,
            # Two views of 512 images leave up to 43 GB of arrays for the gradient at 32 px and 172 GB at 64 px.
            "model.remat": encoder == "resnet50",
        },
        learning_rates={},
        minutes=round(operations / GPU_SPEED / 60),
        processor=f"a GPU at {GPU_SPEED / 1e12:g} TFLOP/s ({operations:.1e} FLOP; not measured)",
        data=data,
    )


LAPTOP = Scale(
    description="10,000 training images of CIFAR-10 (JPEG copy) at 16 px, ResNet-17 of width 1/8 (256-d r)",
    base="configs/simclr.py:{projector},cifar10",
    width=256,
    changes={
        "model.name": "resnet17",
        "model.width": 0.125,
        "data.name": "folder",
        "data.image_size": 16,
        "data.threads": 1,
        "projector.hidden": 256,
        "batch_size": 256,
        "total_steps": 600,
        "optimizer.warmup_steps": 60,
        "log_every_steps": 50,
        "checkpoint_every_steps": 100,
        "devices": 1,
        "probe.labels_per_class": 10,
    },
    learning_rates={
        "none": 6.0,
        "linear": 3.0,
        "mlp": 3.0,
        "direct": 3.0,
        "orthogonal": 3.0,
        "diagonal": 6.0,
        "low_rank": 6.0,
        "random_subset": 3.0,
    },
    minutes=7,
    processor="one CPU core",
    data=CIFAR10,
    images_per_class=(1000, 300),
    threads=1,
)

SCALES = {
    "digits": Scale(
        description="scikit-learn's digits at 16 px, ResNet-18 of width 1/8 (64-d r), 300 steps, as in the quickstart",
        base="configs/quickstart.py",
        width=64,
        changes={"devices": 1, "projector.hidden": 64, "projector.features": 32, "checkpoint_every_steps": 100},
        learning_rates={},
        minutes=2,
        processor="one CPU core",
        data="comes with scikit-learn",
        threads=1,
    ),
    "laptop": LAPTOP,
    "laptop_long": dataclasses.replace(
        LAPTOP,
        description=f"{LAPTOP.description}, 60 epochs instead of 15",
        changes={**LAPTOP.changes, "total_steps": 2400, "optimizer.warmup_steps": 240},
        minutes=27,
    ),
    "gpu": gpu_scale("resnet18", "cifar10", epochs=40, operations=1.2e16),
    "gpu_resnet50": gpu_scale("resnet50", "cifar10", epochs=40, operations=3.9e16),
    "gpu_tiny_imagenet": gpu_scale("resnet18", "tiny_imagenet", epochs=20, operations=5.0e16),
    "gpu_tiny_imagenet_resnet50": gpu_scale("resnet50", "tiny_imagenet", epochs=15, operations=1.2e17),
    "paper": Scale(
        description="ImageNet at 224 px, ResNet-50 (2048-d r), 100 epochs",
        base="configs/simclr.py:{projector},imagenet",
        width=2048,
        changes={},
        learning_rates={},
        minutes=(32 * 7 + 8 * 20) * 60,
        processor="one V100 GPU (the authors' runs: 7 hours on 32 of them, and 20 hours on 8 for the probe)",
        data="ImageNet, prepared by dcjax prepare; --data=DIR is its --data_dir",
    ),
}
PAPER_D0 = 360 / 2048  # as a share of r, which all scales keep


def scale_named(name: str) -> Scale:
    """A scale of `SCALES`; raises `SettingError` for an unknown one."""
    if name not in SCALES:
        raise unknown_name("--scale", name, SCALES)
    return SCALES[name]


def row_named(name: str) -> Row:
    """A row of `ROWS`; raises `SettingError` for an unknown one."""
    if name not in ROWS:
        raise unknown_name("--rows", name, ROWS)
    return ROWS[name]


def make_config(scale_name: str, row_name: str, *, seed: int, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of a run, without its data's place.

    Args:
      scale_name: a key of `SCALES`.
      row_name: a key of `ROWS`.
      seed: the run's seed.
      changes: more config keys and values.
    """
    scale, row = scale_named(scale_name), row_named(row_name)
    config = load_config(scale.base.format(projector=row.projector))
    values: dict[str, Any] = {"projector.name": row.projector, **scale.changes}
    values["projector.d0"] = round((row.d0 or PAPER_D0) * scale.width)
    # This projector has the loss and the gradient of "direct", so the same rate is the best.
    searched = "direct" if row.projector == "low_rank_diagonal" else row.projector
    if searched in scale.learning_rates:
        values["optimizer.learning_rate"] = scale.learning_rates[searched]
    # The grids look at their runs when they are done.
    values |= {"probe.after_training": False, "monitor.every_steps": None, "seed": seed, **(changes or {})}
    known = flatten(config)
    for key, value in values.items():
        if key not in known:
            raise unknown_name("config key", key, known)
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise SettingError(f"config key '{key}': {error}") from error
    return config


def open_data(scale_name: str, data: str | None, work: pathlib.Path) -> str:
    """The folder that a scale's runs read: `data` itself, or a fixed part of it, as links below `work`.

    The first images of each class in the order of their names train; the next ones are held out, to choose learning
    rates; the test images are all used.

    Raises:
      SettingError: no such folder, or too few images.
    """
    scale = scale_named(scale_name)
    if scale_name == "digits":
        if data is not None:
            raise SettingError(f"--data={data} has no use at --scale=digits, whose images come with scikit-learn")
        return ""
    if data is None:
        raise SettingError(f"--data is needed for runs at --scale={scale_name}: {scale.data}")
    root = pathlib.Path(data).expanduser().absolute()
    if not root.is_dir():
        raise SettingError(f"--data {root} is not a folder; give {scale.data}")
    if scale.images_per_class is None:
        return str(root)
    links = chosen_images(root, *scale.images_per_class, needs=scale.data)
    # The name is a hash of the files, so that another folder or choice of images gets a folder of its own.
    digest = hashlib.sha256("\n".join(f"{link} {file}" for link, file in sorted(links.items())).encode())
    target = work / "data" / f"{scale_name}-{digest.hexdigest()[:12]}"
    if not target.exists():
        (work / "data").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work / "data") as unfinished:
            for link, file in links.items():
                path = pathlib.Path(unfinished) / "links" / link
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(file)
            with contextlib.suppress(OSError):  # another run has made it in the meantime
                (pathlib.Path(unfinished) / "links").rename(target)
    return str(target)


def chosen_images(root: pathlib.Path, kept: int, held_out: int, *, needs: str) -> dict[str, pathlib.Path]:
    """The images that a scale trains on, holds out and tests on, as `split/class/name` to the file."""
    links = {}
    for split, name, first, count in (
        ("train", "train", 0, kept),
        ("train", "held_out", kept, held_out),
        ("test", "test", 0, None),
    ):
        classes = sorted(path for path in (root / split).iterdir() if path.is_dir()) if (root / split).is_dir() else []
        if len(classes) < 2:
            raise SettingError(f"--data {root} holds no class folders in {split}/; give {needs}")
        for folder in classes:
            files = sorted(path for path in folder.iterdir() if path.is_file())
            if count is not None and len(files) < first + count:
                raise SettingError(f"--data {folder} holds {len(files)} images, this scale needs {kept + held_out}")
            for file in files[first : None if count is None else first + count]:
                links[f"{name}/{folder.name}/{file.name}"] = file
    return links
