"""DirectCLR: the loss acts on the first d0 entries of the representation, without a trained projector (Table 1).

Command:   dcjax main --config=configs/directclr.py --workdir=runs/directclr
           dcjax main --config=configs/directclr.py:cifar10 --config.data.name=folder --config.data.dir=DIR
Argument:  imagenet (default), folder, cifar10, tiny_imagenet
Hardware:  ImageNet: the paper used 32 V100, 128 images each; any number of devices that divides the batch works.
           cifar10 and tiny_imagenet (a ResNet-18): one accelerator, or two CPU cores for a short run.
Time:      ImageNet: about 7 hours of pre-training on those 32 V100 (the authors' run; not measured with this package).
           cifar10, 16 channels, 5 epochs: 40 to 60 minutes on one CPU core.
Expect:    62.7 % linear top-1 on ImageNet after 100 epochs with d0 = 360 (Table 1 of the paper; not yet reproduced
           here). cifar10, as in experiments/results/README.md: 55.7 % after 5 epochs on a JPEG copy of the images;
           untrained 35.2 % (measured with this package). The 200-epoch schedules of cifar10 and tiny_imagenet have not
           been run yet.
"""

from configs import common


def get_config(data_set: str = "imagenet"):
    return common.fit_to_data_set(common.recipe(), data_set)
