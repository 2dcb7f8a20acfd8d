r"""SimCLR with the paper's three heads: `mlp` (two linear layers with BN), `linear`, or `none` (Table 1).

Command:   python -m dcjax.main --config=configs/simclr.py:mlp --workdir=runs/simclr-mlp
           python -m dcjax.main --config=configs/simclr.py:linear,cifar10 \
               --config.data.name=folder --config.data.dir=DIR
Argument:  mlp, linear or none; after a comma the data set (imagenet, folder, cifar10, tiny_imagenet)
Hardware:  as configs/directclr.py
Time:      as configs/directclr.py
Expect:    ImageNet linear top-1 after 100 epochs: mlp 66.5 %, linear 61.1 %, none 51.5 % (Table 1 of the paper; not
           reproduced here yet).
"""

from configs import common


def get_config(argument: str = "mlp"):
    return common.with_projector(argument, known=("mlp", "linear", "none"))
