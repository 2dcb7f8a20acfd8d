"""The page, from the numbers that `compute` finds."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.metrics_elsewhere.causes import CAUSES
from experiments.metrics_elsewhere.tables import TABLES, Column, differences

PAGE = pathlib.Path(__file__).parent.with_suffix(".md")
INTRO = """# The measures of collapse in other packages

`python -m experiments.metrics_elsewhere` writes this page; the docstring of `metrics_elsewhere/__main__.py` has the
commands that make its environment. The same float64 matrices go to dcjax and to
{versions}.
Columns with * hold formulas that were restated from the sources named at the end; that code was not run. Two numbers
agree where they differ by no more than 1e-4 of themselves. The last column of a table gives, for each row whose numbers
differ, the entries of the following list that explain it.

## Where they differ, and why
"""
MATRICES = """## What each prints

The matrices have 512 columns. Those with n in their names are draws, and N(3, I) is the first one plus 3. "rank k" (k
equal eigenvalues), "half collapsed" (256) and "lam_j = 1 / j" have 1,024 rows, mean 0 and exactly these eigenvalues,
from which the closed forms are computed. Rows "of 2,048" are singular values alone."""
NOTES = {
    "RankMe": "The paper does not centre its rows; `rankme_centered` shows the number without their mean.",
    "Participation ratio": "The corrected ratios estimate that of infinitely many rows, so they exceed the closed "
    "form. The uncorrected one of 128 rows should be near 1 / (1/512 + 1/128) = 102.4.",
    "Coherence": "n / rank max_i |U_i|^2 of the left singular vectors U, from 1 to n / rank (Candes & Recht).",
    "TwoNN, linear fit": "1,500 normal rows in 8 directions, and the same with 500 of them added once more. dcjax "
    'takes neighbours among distinct rows. "Exact distances" are computed from differences of rows, not from squares.',
    "TwoNN, maximum likelihood": "The same rows. scikit-dimension gets the distinct ones here; duplicates affect it as "
    "in the linear fit.",
    "LiDAR": "1,000 images of 10 labels in 128 columns. dcjax takes two views, with which LiDAR reads higher than with "
    'ten, because S_w is estimated from fewer differences. "reptrix, eigenvalues" is reptrix without its PCA.',
}
CHANGES = """Each change makes two numbers equal that differ without it. They are compared on every matrix that the
change applies to, and the command fails where they differ by more than 1e-6 (of the number, or of 1 where it is
smaller)."""
SOURCES = """## Sources

- stable-pretraining 0.1.8: `callbacks/rankme.py`, `callbacks/lidar.py` and `jax/callbacks/lidar.py` below
  `stable_pretraining` of the release; the first two are also in sami-bg/stable-SSL, at 016447d and 1879d1d. The first
  two compute in float32, which changes the fifth digit.
- google-research/google-research: `graph_embedding/metrics/metrics.py` at 8d8a4f1. At 0d140c5 five of its functions
  fail when they are called without a singular value decomposition, because a test for None was inverted.
- lightly 1.6.0: `lightly/utils/debug.py` of the release.
- The first code of IsoScore: bcbi-edu/p_eickhoff_isoscore, `IsoScore.py` at 4715aa4.
- LiDAR with unbiased estimates: arXiv 2312.04000, as quoted in NVlabs/RADIO, pull request 22.
- reptrix keeps eigenvalues on purpose: BARL-SSL/reptrix, issue 16."""

# Table to row to column to cell.
Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]


def render(results: dict[str, Any]) -> str:
    """The page.

    Raises:
      ValueError: a difference has no cause.
    """
    tables = results["tables"]
    columns = {title: found for titles in TABLES.values() for title, found in titles.items()}
    causes = {title: {n: differences(columns[title], row) for n, row in rows.items()} for title, rows in tables.items()}
    used = {cause for rows in causes.values() for found in rows.values() for cause in found}
    number = {cause: str(i) for i, cause in enumerate((cause for cause in CAUSES if cause in used), 1)}
    versions = [f"{name} {version}" for name, version in results["versions"].items() if name != "torch"]
    lines = [INTRO.format(versions=", ".join(versions))]
    lines += [f"{i}. {with_cells(CAUSES[cause].text, tables)}" for cause, i in number.items()]
    lines += ["", MATRICES]
    agreeing = []
    for title, rows in tables.items():
        names = present(columns[title], rows)
        if any(causes[title].values()):
            found = {n: ", ".join(number[cause] for cause in row) or "agrees" for n, row in causes[title].items()}
            lines += ["", f"### {title}", "", *([NOTES[title], ""] if title in NOTES else [])]
            lines += table(names, rows, found)
        else:
            agreeing.append(f"{title} ({', '.join(name for name in names if name != 'dcjax')})")
    lines += ["", f"All agree, on every matrix: {'; '.join(agreeing)}."]
    lines += ["", "## What makes them equal", "", CHANGES, "", *changes_table(number, results["checks"])]
    return "\n".join([*lines, "", SOURCES, ""])


def with_cells(text: str, tables: Tables) -> str:
    """The text of a cause with its cells filled in."""
    return re.sub(r"\[\[(.*?)\|(.*?)\|(.*?)\]\]", lambda m: shown(tables[m[1]][m[2]][m[3]]), text)


def present(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of the columns that some row has."""
    return [column.name for column in columns if any(column.name in row for row in rows.values())]


def table(names: Sequence[str], rows: Mapping[str, Mapping[str, Any]], found: Mapping[str, str]) -> list[str]:
    """The lines of a table of cells, with the causes of each row in the last column."""
    body = [[name, *(shown(row.get(column)) for column in names), found[name]] for name, row in rows.items()]
    return markdown(["", *names, "differs by"], body)


def changes_table(number: Mapping[str, str], checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of the table of changes."""
    body = []
    for cause, i in number.items():
        compared, largest = checks[cause]["compared"], checks[cause]["largest difference"]
        body.append([i, CAUSES[cause].change, str(compared), f"{largest:.0e}"])
    return markdown(["", "change", "matrices", "largest difference"], body)


def shown(value: Any) -> str:
    """A cell of the page."""
    if isinstance(value, str):
        return value.replace("nan", "undefined")
    return "" if value is None else f"{value + 0:.6g}"  # + 0: no -0


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]
