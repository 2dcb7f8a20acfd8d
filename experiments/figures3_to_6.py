"""Figures 3 to 6: the toy models, whose claims `dcjax.toy` puts to the test.

Claim:     strong augmentation collapses a linear layer (3); two layers align (4) and their small singular values do not
           grow (5); the deeper the network, the more dimensions collapse (6).
Command:   python -m experiments.figures3_to_6
Cost:      one minute on two cores; nothing is downloaded.
Look for:  every claim of the four tables holds; the figures are written to experiments/results/toy.

`dcjax toy --figure 3` (4, 5, 6) is the same for one figure, with options for its experiment.
"""

from collections.abc import Sequence

from dcjax.runtime import cli
from dcjax.toy.__main__ import main as toy
from experiments.records import RESULTS


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.figures3_to_6", description=__doc__ or "")
    parser.add_argument("--out", default=str(RESULTS / "toy"), help="folder (default: experiments/results/toy)")
    flags = parser.parse_args(argv)
    toy([*(f"--figure={number}" for number in (3, 4, 5, 6)), f"--out={flags.out}"])


if __name__ == "__main__":
    cli.run(main)
