"""Shared by the configs: the paper's recipe, and its changes for each data set."""

from ml_collections import ConfigDict

from dcjax.schema import Config, as_config_dict


def recipe() -> ConfigDict:
    """The pre-training and probe recipe of the paper: ImageNet, ResNet-50, batch 4096, 100 epochs.

    `dcjax.schema` lists the keys and their defaults.
    """
    return as_config_dict(Config())


def small_images(config: ConfigDict, *, dataset: str, size: int, test_split: str) -> None:
    """Sets a ResNet-18 with the small-image stem, for photographs of one size, on one accelerator or a laptop.

    Because the images have one size, they stay in memory and are cropped on the device. Blur is left out, as in the
    SimCLR paper at 32 px; d0 keeps the paper's share of the representation (360 of 2048).
    """
    config.model.name, config.model.stem = "resnet18", "small"
    config.projector.d0 = 90
    config.projector.hidden = 512
    config.batch_size = 512
    config.total_epochs = 200.0
    config.optimizer.learning_rate = 1.5
    config.checkpoint_every_steps = 500
    config.data.update(
        {"dataset": dataset, "test_split": test_split, "image_size": size, "stored_size": size, "threads": 4}
    )
    config.augment.crop_scale = (0.2, 1.0)
    config.augment.blur = (0.0, 0.0)
    config.probe.update({"cached": True, "after_training": True})


def fit_to_data_set(config: ConfigDict, name: str) -> ConfigDict:
    """Sets the data, the encoder and the schedule for a data set.

    Args:
      config: the config of `recipe`, changed in place.
      name: `imagenet`, `folder` (an ImageNet-style folder of photographs of any size), `cifar10` or `tiny_imagenet`.
        The last two read TFDS sets or, with `--config.data.name=folder --config.data.dir=...`, class folders.

    Returns:
      The config.

    Raises:
      ValueError: the data set is not known.
    """
    if name == "imagenet":
        pass
    elif name == "folder":
        config.data.name = "folder"
    elif name == "cifar10":
        small_images(config, dataset="cifar10", size=32, test_split="test")
    elif name == "tiny_imagenet":
        small_images(config, dataset="tiny_imagenet", size=64, test_split="validation")
    else:
        raise ValueError(f"data set '{name}' is not known; known: imagenet, folder, cifar10, tiny_imagenet")
    return config


def with_projector(argument: str, *, known: tuple[str, ...]) -> ConfigDict:
    """The recipe for an argument `projector` or `projector,data_set`; the data set is imagenet by default.

    Raises:
      ValueError: the projector is not among `known`, or the data set is not known.
    """
    projector, _, data_set = argument.partition(",")
    if projector not in known:
        raise ValueError(f"projector '{projector}' is not known; known: {', '.join(known)}")
    config = fit_to_data_set(recipe(), data_set or "imagenet")
    config.projector.name = projector
    return config
