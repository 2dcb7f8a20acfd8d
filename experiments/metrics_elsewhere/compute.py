"""All numbers of the page."""

from typing import Any

import numpy as np

from dcjax.collapse import ranks
from experiments.metrics_elsewhere.causes import CAUSES, check
from experiments.metrics_elsewhere.formulas import entropy_rank
from experiments.metrics_elsewhere.matrices import make_inputs
from experiments.metrics_elsewhere.peers import versions
from experiments.metrics_elsewhere.tables import TABLES, cells


def compute() -> dict[str, Any]:
    """All numbers of the page.

    Raises:
      ValueError: a change no longer makes two numbers equal.
    """
    inputs = make_inputs()
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, titles in TABLES.items():
        for title, columns in titles.items():
            tables[title] = {name: cells(columns, rows) for name, rows in inputs[kind].items()}
    tables["RankMe"] |= wide_rankme()
    checks = {name: check(name, inputs[cause.inputs]) for name, cause in CAUSES.items()}
    return {"versions": versions(), "tables": tables, "checks": checks}


def wide_rankme() -> dict[str, dict[str, float]]:
    """RankMe of 2,048 singular values of which some are 1 and the others 0."""
    eps = {"closed form, eps 0": 0, "google-research*": 1e-12, "stable-pretraining*": 1e-5}
    found = {}
    for rank in (1, 30, 360):
        s = (np.arange(2048) < rank).astype(float)
        found[f"rank {rank} of 2,048"] = {name: entropy_rank(s, e) for name, e in eps.items()} | {
            "dcjax": ranks.rankme(s)
        }
    return found
