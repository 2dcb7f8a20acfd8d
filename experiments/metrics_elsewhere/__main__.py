"""The same matrices through other packages: the numbers that they print, and why some differ.

Claim:     packages that cite one paper print different numbers, and one change to each explains its difference.
Command:   python -m experiments.metrics_elsewhere      (in an environment of its own, made by the two lines below)
               python -m venv peers && . peers/bin/activate
               pip install -e . torch==2.13.0 embedding-quality==0.1.1 dimensionality==0.1.4 IsoScore==2.0.1 \
                   scikit-dimension==0.5.0 reptrix==0.1.0
Cost:      a minute on one core.
Look for:  experiments/metrics_elsewhere.md, which this command writes; the last table holds the changes and how closely
           they agree. The command fails where a change no longer explains a difference.
"""

import json
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from experiments.metrics_elsewhere.compute import compute
from experiments.metrics_elsewhere.page import PAGE, render
from experiments.metrics_elsewhere.peers import check_peers
from experiments.records import RESULTS, rounded


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.metrics_elsewhere", description=__doc__ or "")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where the numbers go")
    flags = parser.parse_args(argv)
    check_peers()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of other packages
        results = rounded(compute())
    replace_text(flags.results / "metrics_elsewhere.json", json.dumps(results, indent=1) + "\n")
    replace_text(PAGE, render(results))
    print(PAGE)


if __name__ == "__main__":
    cli.run(main)
