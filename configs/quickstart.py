"""DirectCLR on scikit-learn's handwritten digits: nothing to download.

Command:   dcjax main --config=configs/quickstart.py
Hardware:  two CPU cores
Time:      one to two minutes, compilation and probes included
Expect:    about 96 % for r with 10 labels of each class and 99 % with all labels; 90 % and 97.5 % for raw pixels,
           56 % and 76 % for the untrained encoder (measured with this package: experiments/results/quickstart.json)
"""

from configs import common


def get_config():
    config = common.recipe()
    config.batch_size = 128
    config.total_steps = 300
    config.log_every_steps = 25
    config.checkpoint_every_steps = 150
    config.monitor.every_steps = 100
    config.model.update({"name": "resnet18", "width": 0.125, "stem": "small"})
    config.projector.d0 = 16
    config.loss.temperature = 0.2
    config.optimizer.learning_rate = 5.0
    config.optimizer.warmup_steps = 40
    config.data.update({"name": "digits", "train_split": "train", "test_split": "test"})
    config.data.update({"image_size": 16, "stored_size": 8, "threads": 1})
    # A digit keeps its meaning under changes of brightness and contrast, but not when it is mirrored; it has no colour
    # and no texture to blur.
    config.augment.update({"crop_scale": (0.4, 1.0), "flip": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0})
    config.augment.update({"blur": (0.0, 0.0), "solarize": (0.0, 0.0), "mean": (0.305,) * 3, "std": (0.376,) * 3})
    config.probe.update({"after_training": True, "cached": True, "labels_per_class": 10})
    return config
