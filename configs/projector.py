r"""SimCLR with each projector of Table 2, and the random subvector of section 6.

Command:   python -m dcjax.main --config=configs/projector.py:orthogonal --workdir=runs/orthogonal
           python -m dcjax.main --config=configs/projector.py:low_rank,cifar10 \
               --config.data.name=folder --config.data.dir=DIR
Argument:  none, orthogonal, linear, diagonal, low_rank, low_rank_diagonal, direct, random_subset or mlp; after a comma
           the data set (imagenet, folder, cifar10, tiny_imagenet)
Hardware:  as configs/directclr.py
Time:      as configs/directclr.py
Expect:    ImageNet linear top-1 after 100 epochs: none 51.5 %, orthogonal 52.2 %, linear 61.1 %, diagonal 60.2 %,
           low_rank 62.3 %, low_rank_diagonal and direct 62.7 % (Table 2 of the paper); random_subset, d0 entries drawn
           anew for every step, 43.0 % (section 6). Not reproduced here yet.
"""

from configs import common

NAMES = ("none", "orthogonal", "linear", "diagonal", "low_rank", "low_rank_diagonal", "direct", "random_subset", "mlp")


def get_config(argument: str = "low_rank"):
    return common.with_projector(argument, known=NAMES)
