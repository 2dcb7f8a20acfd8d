r"""SimCLR with each projector of Tables 1 and 2, and with the random subvector of section 6.

Command:   dcjax main --config=configs/simclr.py:mlp --workdir=runs/simclr-mlp
           dcjax main --config=configs/simclr.py:linear,cifar10 --config.data.name=folder \
               --config.data.dir=DIR
Argument:  mlp, linear, none, orthogonal, diagonal, low_rank, low_rank_diagonal, direct or random_subset; after a comma
           the data set (imagenet, folder, cifar10, tiny_imagenet)
Hardware:  as configs/directclr.py
Time:      as configs/directclr.py
Expect:    ImageNet linear top-1 after 100 epochs: mlp 66.5 %, linear 61.1 %, none 51.5 % (Table 1 of the paper);
           orthogonal 52.2 %, diagonal 60.2 %, low_rank 62.3 %, low_rank_diagonal and direct 62.7 % (Table 2);
           random_subset, d0 entries drawn anew for every step, 43.0 % (section 6). Not reproduced here yet.
"""

from configs import common

PROJECTORS = (
    "mlp",
    "linear",
    "none",
    "orthogonal",
    "diagonal",
    "low_rank",
    "low_rank_diagonal",
    "direct",
    "random_subset",
)


def get_config(argument: str = "mlp"):
    return common.with_projector(argument, known=PROJECTORS)
