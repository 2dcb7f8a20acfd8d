"""What the configs share: the paper's recipe, and how it is fitted to each data set."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

IMAGENET_MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def recipe() -> ConfigDict:
    """The pre-training and probe recipe of the paper: ImageNet, ResNet-50, batch 4096, 100 epochs."""
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 4096,  # global, over all devices
            "total_epochs": 100.0,
            "total_steps": placeholder(int),  # counts instead of total_epochs where it is given
            "devices": 0,  # 0: all
            "log_every_steps": 50,
            "checkpoint_every_steps": 1000,
            "model": {
                "name": "resnet50",
                "width": 1.0,
                "stem": "imagenet",
                "dtype": "auto",  # bfloat16 on accelerators, float32 on CPU
                "remat": False,
            },
            # d0 is 360 of 2048 in the paper; an encoder of another width wants its own.
            "projector": {"name": "direct", "d0": 360, "hidden": 2048, "features": 128},
            "loss": {
                "name": "info_nce",
                "temperature": 0.1,
                # Rows of a tile of the logits; "none" holds all of them at once; "auto" tiles where a device
                # would hold many (4 MB on CPU, 64 MB on an accelerator).
                "block_size": "auto",
            },
            "optimizer": {
                # The paper's rate at batch 4096. It is not rescaled by the code: for another batch size, start from
                # 4.8 * batch_size / 4096 and expect the best rate of a small batch to lie above that line.
                "learning_rate": 4.8,
                "warmup_epochs": 10.0,
                "warmup_steps": placeholder(int),  # counts instead of warmup_epochs where it is given
                "final_scale": 0.001,
                "momentum": 0.9,
                "weight_decay": 1e-6,
                "trust_coefficient": 0.001,
            },
            "data": {
                "name": "tfds",
                "dataset": "imagenet2012",  # for tfds
                "dir": "",  # empty: TFDS's own default folder
                "train_split": "train",
                "test_split": "validation",
                "image_size": 224,
                "stored_size": 0,  # side of the images where all are of one size; 0 where sizes vary
                "threads": 16,
                "max_damaged": 0.001,  # share of the images that may be damaged, each replaced by the next one
            },
            "augment": {
                "crop_scale": (0.08, 1.0),
                "crop_ratio": (3 / 4, 4 / 3),
                "interpolation": "bicubic",  # or bilinear; antialiased
                "flip": 0.5,
                "jitter": 0.8,
                "brightness": 0.4,
                "contrast": 0.4,
                "saturation": 0.2,
                "hue": 0.1,
                "grayscale": 0.2,
                "blur": (1.0, 0.1),  # probability in the first and the second view
                "blur_sigma": (0.1, 2.0),
                "solarize": (0.0, 0.2),
                **IMAGENET_MEAN_STD,
            },
            "probe": {
                "after_training": False,
                "cached": False,  # True: features are computed once, without augmentation
                "epochs": 100,
                "batch_size": 256,
                "eval_batch_size": 0,  # images encoded at a time, over all devices; 0: 128 for each device
                "learning_rate": 0.1,
                # The paper's numbers come from a script that makes a cosine schedule and never steps it.
                "schedule": "constant",  # or cosine, stepped once an epoch
                # Of the random crops and of the centre crop: torchvision's default, which the authors' probe used.
                # Images that are not cropped are resized as in pre-training.
                "interpolation": "bilinear",  # or bicubic; antialiased
                "momentum": 0.9,
                "weight_decay": 1e-6,
                "labels_per_class": 0,  # 0: all labels
                "neighbors": 20,
            },
        }
    )


def small_images(config: ConfigDict, *, dataset: str, size: int, test_split: str) -> None:
    """ResNet-18 with the small-image stem for a set of fixed-size photographs, on one accelerator or a laptop.

    The images are of one size, so they stay in memory and are cropped on the device. Blur is left out, as the SimCLR
    paper does at 32 px; d0 keeps the paper's share of the representation (360 of 2048).
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
    """Sets the data, the encoder's stem and the schedule that a data set wants.

    Args:
      config: from `recipe`, changed in place.
      name: `imagenet`, `folder` (an ImageNet-style folder of photographs of any size), `cifar10` or `tiny_imagenet`.
        The last two read TFDS sets or, with `--config.data.name=folder --config.data.dir=...`, class folders.

    Returns:
      The config.
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
    """The recipe with a projector and a data set from `projector` or `projector,data_set`."""
    projector, _, data_set = argument.partition(",")
    if projector not in known:
        raise ValueError(f"projector '{projector}' is not among {', '.join(known)}")
    config = fit_to_data_set(recipe(), data_set or "imagenet")
    config.projector.name = projector
    return config
