"""README's section on results: the paper's numbers beside those in experiments/results.

Command:   python -m experiments.results_table            (writes the part of README.md between its two markers)
Cost:      none; a number that no file holds has no row.
Look for:  columns of a scale appear with its first table; the figure with its first spectra or scores.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text
from experiments.figure7 import ROWS as SPECTRA
from experiments.grid import TOLERANCE, Mean, markdown, output, span
from experiments.records import RESULTS
from experiments.scales import ROWS, SCALES
from experiments.subvector import PAPER as PAPER_OF_PARTS
from experiments.table1 import ROWS as TABLE1
from experiments.table2 import ROWS as TABLE2

README = pathlib.Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- Written by `python -m experiments.results_table`. -->"
END = "<!-- End of what it writes. -->"
# The scale of the paper last: its own numbers are beside it.
FIRST = ("laptop", "laptop_long", "digits")
ORDER = (*FIRST, *(name for name in SCALES if name not in FIRST))
SHOWN_TOLERANCES = (1e-3, 1e-4, 1e-6)  # of those of Figure 7
FIGURES = {
    "figure7": "Spectra of r with and without a projector",
    "table1": "Linear accuracy of r: SimCLR with and without projectors, and DirectCLR",
}
SINGLE_RUNS = {
    "quickstart": ("quickstart (digits, 300 steps)", "`dcjax main --config=configs/quickstart.py`"),
    "cifar10_jpeg_directclr": (
        "DirectCLR, CIFAR-10 (JPEG copy), 5 epochs",
        "[as recorded](experiments/results/README.md#directclr-on-cifar-10-jpeg-copy)",
    ),
}


def read(file: pathlib.Path) -> Any:
    """What a JSON file holds; an empty table where there is none."""
    return json.loads(file.read_text()) if file.exists() else {}


def cell(line: dict[str, Any] | None) -> str | None:
    """A mean with its interval and the number of seeds, from a line of a table's file."""
    if not line or "top1" not in line:
        return None
    half_width = line["top1"]["half_width"]
    value = Mean(line["top1"]["mean"], math.inf if half_width is None else half_width, line["seeds"])
    unfinished = "" if line.get("converged", True) else ", probe not converged"
    return f"{value} ({line['seeds']}{unfinished})"


def score_lines(results: pathlib.Path, scale: str) -> dict[str, dict[str, str | None]]:
    """For each command, label to cell, of every score that is there at a scale."""
    found = {}
    for name, rows in (("table1", TABLE1), ("table2", TABLE2)):
        table = read(output(results, name, scale, "json"))
        found[name] = {ROWS[row].label: cell(table.get(row)) for row in rows}
    table = read(output(results, "subvector", scale, "json"))
    found["subvector"] = {label: cell(table.get(label)) for label in PAPER_OF_PARTS}
    return found


def scores(results: pathlib.Path) -> str | None:
    """The linear accuracies of Tables 1 and 2 and of section 6.2, a column for each scale; None without any."""
    paper = {row.label: row.paper for row in ROWS.values()} | PAPER_OF_PARTS
    found = {scale: score_lines(results, scale) for scale in ORDER}
    scales = [name for name, parts in found.items() if any(any(part.values()) for part in parts.values())]
    rows, shown = [], set()
    for command in ("table1", "table2", "subvector"):
        for label in found[ORDER[0]][command]:
            values = [found[scale][command][label] for scale in scales]
            # DirectCLR's whole r and SimCLR without a projector stand in several of these tables.
            if any(values) and label not in shown and label != "DirectCLR, r":
                shown.add(label)
                rows.append([label, paper[label], *values, f"`python -m experiments.{command}`"])
    if not rows:
        return None
    if len(scales) == 1:  # otherwise the columns' heads name it
        for row in rows:
            row[-1] = f"{row[-1][:-1]} --scale={scales[0]}`"
    header = ["linear top-1 of r, %", "paper, ImageNet", *(f"`--scale={scale}`" for scale in scales), "command"]
    notes = [f"`{scale}`: {SCALES[scale].description}." for scale in scales]
    return (
        f"{markdown(header, rows)}\n\n"
        f"Means with 95 % intervals over seeds, whose number is in brackets. {' '.join(notes)}"
    )


def collapsed_dimensions(results: pathlib.Path) -> str | None:
    """Figure 7 in numbers: counts of collapsed dimensions of r for every scale and tolerance; None without any."""
    tables = {scale: read(output(results, "figure7", scale, "json")) for scale in ORDER}
    labels = [row for row in SPECTRA if any(row in table for table in tables.values())]
    rows = []
    for scale, table in tables.items():
        for limit in SHOWN_TOLERANCES if table else ():
            counts = {row: line["collapsed"][f"{limit:g}"] for row, line in table.items()}
            spans = [span(counts[row]) if row in counts else None for row in labels]
            rows.append([f"{limit:g} of the largest, of {SCALES[scale].width} (`{scale}`)", *spans])
    header = ["dimensions of r below", *(ROWS[row].label for row in labels)]
    note = (
        "Counts of singular values of eq. 1, r scaled to norm 1, smallest to largest over seeds "
        "(`python -m experiments.figure7`). In the paper some collapse without a projector, and none with one."
    )
    return f"{markdown(header, rows)}\n\n{note}" if rows else None


def collapsed_rows(results: pathlib.Path) -> list[list[str | None]]:
    """Rows about Figure 2: counts of collapsed dimensions, of every scale that has them."""
    rows: list[list[str | None]] = []
    for scale in ORDER:
        table = read(output(results, "figure2", scale, "json"))
        if table:
            found = "; ".join(f"{ROWS[row].label} {span(line['collapsed'])}" for row, line in table.items())
            what = f"dimensions of z below {TOLERANCE:g} of the largest (`{scale}`)"
            rows.append([what, "about 30 of 128 at zero", found, f"`python -m experiments.figure2 --scale={scale}`"])
    return rows


def claims(results: pathlib.Path) -> str | None:
    """The claims that need no grid of runs; None without any."""
    rows = collapsed_rows(results)
    found = read(results / "mechanism.json")
    if found:
        zero, width = found["exact zeros"], found["width"]
        inputs = len(found["gradient at the last block's input"])
        text = f"at r {zero['r']} of {width}, at that block's input {zero['input']} of {inputs}"
        rows.append([
            "DirectCLR: channels without gradient", "all but d0 at r, none at the last block's input", text,
            "`python -m experiments.mechanism`",
        ])  # fmt: skip
    found = read(results / "figure1.json")
    if found:
        smallest, largest = found["dimensional collapse"][-1], found["dimensional collapse"][0]
        text = f"smallest standard deviation {smallest / largest:.0e} of the largest"
        rows.append(["Figure 1: dimensional collapse", "one direction lost", text, "`python -m experiments.figure1`"])
    for what, names, command in (
        ("Figures 3 to 6, toy models", [f"figure_{i}" for i in (3, 4, 5, 6)], "python -m experiments.figures3_to_6"),
        (
            "Lemmas, theorems and corollaries",
            [*(f"{kind}_{i}" for kind in ("lemma", "theorem") for i in (1, 2, 3)), "corollary_1", "corollary_2"],
            "dcjax toy --all",
        ),
    ):
        tables = [read(results / "toy" / f"{name}.json") for name in names]
        holds = [check["holds"] for table in tables for check in table.get("checks", ())]
        if holds:
            rows.append([what, None, f"{sum(holds)} of {len(holds)} checks hold", f"`{command}`"])
    return markdown(["claim", "paper", "here", "command"], rows) if rows else None


def single_runs(results: pathlib.Path) -> str | None:
    """Linear accuracies of the runs that were made once; None without any."""
    rows = []
    for name, (label, command) in SINGLE_RUNS.items():
        found = read(results / f"{name}.json").get("scores", {})
        selected = next((part for part in found if part.startswith("r[:")), None)
        if selected:
            parts = ("r", selected, "untrained encoder")
            rows.append([label, *(f"{100 * found[part]['top1']:.1f} %" for part in parts), command])
    header = ["one run", "r, all labels", "r[:d0]", "the same encoder untrained", "command"]
    return markdown(header, rows) if rows else None


def figure(results: pathlib.Path) -> str | None:
    """The figure that shows most: the longest training first, photographs before digits, spectra before scores.

    Returns:
      The Markdown of the image; None without any.
    """
    for scale in ("laptop_long", *ORDER):
        for name, title in FIGURES.items():
            file = output(results, name, scale, "png")
            if file.exists():
                return f"![{title}, {SCALES[scale].description}](experiments/results/{file.name})"
    return None


def section(results: pathlib.Path = RESULTS) -> str:
    """The Markdown text between the markers."""
    parts = (scores(results), figure(results), collapsed_dimensions(results), claims(results), single_runs(results))
    return "\n\n".join(part for part in parts if part)


def insert(text: str, results: pathlib.Path = RESULTS) -> str:
    """README's text with the section as it is now.

    Raises:
      SettingError: not one pair of markers, in their order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise SettingError(f"README.md needs one line '{BEGIN}' and, after it, one line '{END}'")
    return f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}"


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.results_table", description=__doc__ or "")
    parser.parse_args(argv)
    replace_text(README, insert(README.read_text()))
    print(README)


if __name__ == "__main__":
    cli.run(main)
