"""Pieces of HTML; every text that may come from a run goes through `dcjax.report.escape.text`."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from dcjax.report.escape import text
from dcjax.report.figures import FLOOR, colour, palette


def value_text(value: Any) -> str:
    """A config value as HTML."""
    value = float(f"{value:.12g}") if isinstance(value, float) else value
    return text(value if isinstance(value, str) and value else json.dumps(value, default=str), 120)


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of a text from anywhere."""
    return f"<p{f' class={kind}' if kind else ''}>{text(words)}</p>"


def figure(title: str, about: str, svg: str, legend: str = "") -> str:
    """A figure with its caption above it."""
    more = f" <span>{text(about)}</span>" if about else ""
    return f"<figure><figcaption>{text(title, 80)}{more}</figcaption>{svg}{legend}</figure>"


def legend(entries: Iterable[tuple[str, int | None]]) -> str:
    """Names of curves, each after a sample of its line.

    Args:
      entries: the names with the places in the order of colours; None for the dotted grey line.
    """
    spans = []
    for name, index in entries:
        shade, dashes = ("#777777", "1 2") if index is None else colour(index)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        sample = f'<path d="M0 4h26" stroke="{shade}" stroke-width="2"{dash}/>'
        spans.append(f'<span><svg viewBox="0 0 26 8" aria-hidden="true">{sample}</svg>{text(name, 60)}</span>')
    return f'<p class="legend">{" ".join(spans)}</p>'


def colour_key() -> str:
    """The scale of the heat maps' colours."""
    shades = palette()
    stops = ", ".join(
        f"{shade} {100 * i / len(shades):g}% {100 * (i + 1) / len(shades):g}%" for i, shade in enumerate(shades)
    )
    return (
        f'<div class="key"><span>&le; {FLOOR:.0e}</span><i style="background: linear-gradient(90deg, {stops})"></i>'
        "<span>1 (the largest)</span></div>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = (), kind: str = "") -> str:
    """A table in a box of its own that scrolls if it is wide.

    Args:
      header: HTML of the header's cells.
      rows: HTML of the cells of each row, whose first one is the row's header.
      numbers: indices of the columns that are aligned to the right.
      kind: a class.
    """
    right = set(numbers)

    def cells(row: Sequence[str], tags: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if i in right else ''}{_scope(tag, tags)}>{cell}</{tag}>"
            for i, (cell, tag) in enumerate(zip(row, tags, strict=True))
        )

    head = cells(header, ["th"] * len(header))
    body = "".join(f"<tr>{cells(row, ['th', *['td'] * (len(row) - 1)])}</tr>" for row in rows)
    name = f' class="{kind}"' if kind else ""
    return (
        f'<div class="box" tabindex="0"><table{name}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _scope(tag: str, tags: Sequence[str]) -> str:
    return "" if tag == "td" else " scope=col" if set(tags) == {"th"} else " scope=row"


def grid(figures: Sequence[str], *, wide: bool = False) -> str:
    """Figures beside each other, as many as the window has room for."""
    return f'<div class="{"wide grid" if wide else "grid"}">{"".join(figures)}</div>' if figures else ""
