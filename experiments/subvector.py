"""Section 6.2: the part of r that the loss acts on, the part that it never sees, and a subvector redrawn every step.

Claim:     the whole of r (62.7) is better than r[:d0], the part that the loss acts on (47.9): the rest is trained too,
           through the last residual block. The subvector must be fixed: redrawn for every step it gives 43.0.
Command:   python -m experiments.subvector --scale=laptop --data=DIR     (--dry_run: the plan and its cost)
Cost:      see --dry_run; DirectCLR's runs are those of Table 1.
Look for:  r above both of its parts; r[d0:], which no gradient of the loss reaches directly, above an untrained one.
"""

import json
import pathlib
from collections.abc import Sequence

from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from experiments.grid import Results, markdown, output, run_grid, score
from experiments.records import rounded
from experiments.scales import SCALES
from experiments.tables import draw_scores

ROWS = ("direct", "random_subset", "untrained")
PAPER = {"DirectCLR, r": 62.7, "DirectCLR, r[:d0]": 47.9, "random subvector, r": 43.0}


def report(results: Results, scale: str, folder: pathlib.Path) -> str:
    parts = {}
    for row, label in (("direct", "DirectCLR"), ("random_subset", "random subvector"), ("untrained", "untrained")):
        runs = results.get(row, [])
        for part in runs[0]["scores"] if runs else ():
            short = part if part in ("r", "raw pixels") else ("r[:d0]" if part.startswith("r[:") else "r[d0:]")
            name = part if part == "raw pixels" else f"{label}, {short}"
            parts[name] = (len(runs), {kind: score(runs, part, kind) for kind in ("top1", "few_label", "knn")})
    rows = [[name, PAPER.get(name), *scores.values(), count] for name, (count, scores) in parts.items()]
    header = ["", "paper, ImageNet", "linear, all labels", "linear, few labels", "k-NN", "seeds"]
    title = "Section 6.2: parts of the representation"
    text = (
        f"{title}\n\n{markdown(header, rows)}\n\n{SCALES[scale].description}. Top-1 in %, ± 95 % interval over seeds."
    )
    table = {
        name: {"seeds": count}
        | {
            kind: {"mean": found.mean, "half_width": found.half_width if found.count > 1 else None}
            for kind, found in scores.items()
            if found is not None
        }
        for name, (count, scores) in parts.items()
    }
    replace_text(output(folder, "subvector", scale, "md"), text + "\n")
    replace_text(output(folder, "subvector", scale, "json"), json.dumps(rounded(table), indent=1) + "\n")
    bars = {name: scores["top1"] for name, (_, scores) in parts.items()}
    draw_scores(bars, output(folder, "subvector", scale, "png"), title=title)
    return text


def main(argv: Sequence[str]) -> None:
    run_grid(argv, module="experiments.subvector", doc=__doc__ or "", rows=ROWS, report=report)


if __name__ == "__main__":
    cli.run(main)
