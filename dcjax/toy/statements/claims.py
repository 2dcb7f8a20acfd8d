"""What a statement of the theory claims, what was computed, and whether it holds: as a table and as JSON."""

import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Check:
    """One claim, put to the test. A claim without an error is an ordering or a count."""

    claim: str
    stated: str
    computed: str
    holds: bool
    error: float | None = None
    allowed: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers beside the claims, a row to a setting."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Report:
    """A statement, its checks, and how to draw it.

    Attributes:
      title: which statement, and what it says in a few words.
      statement: the formula as it is tested.
      checks: the claims.
      notes: where the printed statement must be read with care.
      draw: writes the figure to a path.
      tables: further numbers.
      numbers: what the figure shows, arrays by name.
    """

    title: str
    statement: str
    checks: Sequence[Check]
    notes: Sequence[str]
    draw: Callable[[pathlib.Path], None]
    tables: Sequence[Table] = ()
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(check.holds for check in self.checks)


def vanishes(claim: str, errors: Any, *, double: float, single: float) -> Check:
    """A claim that errors are zero up to rounding: the largest against the bound of the running precision."""
    error = float(np.max(np.asarray(errors)))
    allowed = double if in_double() else single
    return Check(claim, "0", f"{error:.1e}", bool(error <= allowed), error, allowed)


def close(claim: str, computed: float, stated: float, *, allowed: float) -> Check:
    """A claim that a number has a value."""
    error = abs(float(computed) - stated)
    return Check(claim, f"{stated:.4g}", f"{computed:.4g}", bool(error <= allowed), error, allowed)


def at_least(claim: str, values: Any, bound: float) -> Check:
    """A claim that all values reach a bound; the smallest is shown. It does not hold where there is none to test."""
    if not np.size(values):
        return Check(claim, f">= {bound:g}", "none", False)
    low = float(np.min(np.asarray(values)))
    return Check(claim, f">= {bound:g}", f"{low:.5g}", bool(low >= bound))


def at_most(claim: str, values: Any, bound: float) -> Check:
    """A claim that no value exceeds a bound; the largest is shown. It does not hold where there is none to test."""
    if not np.size(values):
        return Check(claim, f"<= {bound:g}", "none", False)
    high = float(np.max(np.asarray(values)))
    return Check(claim, f"<= {bound:g}", f"{high:.4g}", bool(high <= bound))


def counts(claim: str, values: Any, low: int, high: int) -> Check:
    """A claim that counts, one a seed, lie in a range."""
    values = np.asarray(values).ravel()
    stated = str(low) if low == high else f"{low} to {high}"
    return Check(claim, stated, listed(values), bool((values >= low).all() and (values <= high).all()))


def refuted(claim: str, errors: Any, *, by: float) -> Check:
    """A printed formula that must fail: one counterexample is enough, so the largest of its errors counts."""
    error = float(np.max(np.asarray(errors)))
    return Check(claim, "must fail", f"off by {error:.2g}", bool(error > by), error)


def relative_error(found: Any, expected: Any) -> Any:
    """The largest difference over the largest entry of what was expected."""
    return jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected))


def in_double() -> bool:
    """Whether JAX computes in float64."""
    return jnp.zeros(()).dtype == jnp.float64


def listed(values: Any) -> str:
    """Whole numbers as text: one where all agree."""
    values = np.asarray(values).ravel()
    return str(values[0]) if (values == values[0]).all() else ", ".join(map(str, values))


def as_text(report: Report) -> str:
    """The report as the command prints it."""
    rows = [["claim", "stated", "computed", "allowed", "holds"]]
    for check in report.checks:
        allowed = "" if check.allowed is None else f"{check.allowed:.2g}"
        rows.append([check.claim, check.stated, check.computed, allowed, "yes" if check.holds else "NO"])
    blocks = [report.title, f"  {report.statement}", "", *_aligned(rows)]
    for table in report.tables:
        blocks += ["", f"  {table.title}", *_aligned([list(table.header), *map(list, table.rows)])]
    if report.notes:
        blocks += [
            "",
            *(
                textwrap.fill(f"Note: {note}", 110, initial_indent="  ", subsequent_indent="        ")
                for note in report.notes
            ),
        ]
    return "\n".join(blocks)


def as_json(report: Report, options: dict[str, Any]) -> dict[str, Any]:
    """The report as it is written to a file, with the options that it was made with."""
    return {
        "title": report.title,
        "statement": report.statement,
        "options": options,
        "precision": "float64" if in_double() else "float32",
        "holds": report.holds,
        "checks": [dataclasses.asdict(check) for check in report.checks],
        "tables": [dataclasses.asdict(table) for table in report.tables],
        "notes": list(report.notes),
        "numbers": {name: _plain(value) for name, value in report.numbers.items()},
    }


def _plain(value: Any) -> Any:
    """Arrays as lists of numbers of six digits: a file to read, not a checkpoint."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.floating):
        flat = [float(f"{item:.6g}") for item in array.ravel()]
        flat = [item if math.isfinite(item) else None for item in flat]  # JSON knows no NaN
        return flat[0] if array.ndim == 0 else np.reshape(np.asarray(flat, object), array.shape).tolist()
    return array.tolist()


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines of equal columns, the first of them flush left, with a rule under the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  " + "  ".join(cells).rstrip())
    return [lines[0], "  " + "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]
