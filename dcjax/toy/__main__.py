"""Tests the statements of the theory.

    dcjax toy --theorem 1        (or 2, 3; --lemma 1|2|3; --corollary 1|2; --figure 3|4|5|6)
    dcjax toy --all              all of these
    dcjax toy --phase            the phase diagram, which takes minutes

Each statement prints a table of its claims, with the values stated and computed, and writes a figure (PNG) and its
numbers (JSON). The exit status is 0 if every claim holds, 1 if one fails, and 2 after a mistake on the command line.
The bounds in the tables are made for the default options: a much smaller model or a much shorter run may miss them.
"""

import argparse
import importlib
import inspect
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import refusing, replace_text

# Kind of statement: its module in dcjax.toy.statements, its numbers in the paper, and its help text.
STATEMENTS = {
    "lemma": ("lemmas", "123", "the gradient flows and their parts"),
    "theorem": ("theorems", "123", "1 strong augmentation, 2 alignment, 3 the growth of singular values"),
    "corollary": ("corollaries", "12", "the embeddings' covariance: 1 strong augmentation, 2 depth"),
    "figure": ("figures", "3456", "the paper's toy figures"),
}
MAX_AMPLITUDE = 1000.0
ELSEWHERE = "give a folder that can be"
OPTIONS = ("seed", "seeds", "dim", "amplitude", "depth", "steps")


def main(argv: Sequence[str]) -> None:
    """Parses the command line, runs the statements it names and reports them."""
    flags = _parse(argv)
    names = _chosen(flags)
    given = _options(flags)
    out = _folder(flags.out)
    functions = [_function(name) for name in names]
    _check_options(names, functions, given)
    _start_jax(flags.x64)
    summary, failed = [], 0
    for name, function in zip(names, functions, strict=True):
        start = time.perf_counter()
        held, line = _run(name, function, given, out)
        failed += not held
        summary.append(f"  {line}  {time.perf_counter() - start:5.1f} s")
    if len(names) > 1:
        print("\n".join(["Summary", *summary]))
    if failed:
        options = " (the bounds are made for the default options)" if given or not flags.x64 else ""
        cli.leave(1, f"a claim does not hold (NO in the table) in {failed} of {len(names)} statements{options}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="dcjax toy", description=__doc__ or "")
    for kind, (_, numbers, text) in STATEMENTS.items():
        parser.add_argument(f"--{kind}", metavar="|".join(numbers), action="append", default=[], help=text)
    parser.add_argument("--phase", action="store_true", help="the phase diagram of collapse over amplitude and depth")
    parser.add_argument("--all", action="store_true", help="every lemma, theorem, corollary and figure")
    parser.add_argument("--seed", type=int, help="the first seed (0)")
    parser.add_argument("--seeds", type=int, help="the number of seeds")
    parser.add_argument("--dim", type=int, help="width of the models (16)")
    parser.add_argument(
        "--amplitude",
        type=float,
        nargs="+",
        help="variance of the augmentation's noise; the threshold of collapse is 1, the variance between inputs. "
        "Figure 3 takes several values, the phase diagram the upper end of its axis",
    )
    parser.add_argument("--depth", type=int, help="layers of the deepest model: corollary 2, figure 6, phase diagram")
    parser.add_argument("--steps", type=int, help="steps of SGD")
    parser.add_argument("--out", default="runs/toy", help="folder of the figures and numbers (runs/toy)")
    parser.add_argument("--x64", action=argparse.BooleanOptionalAction, default=True, help="float64, or else float32")
    return parser.parse_args(argv)


def _chosen(flags: argparse.Namespace) -> list[str]:
    """The names of the statements to run, such as `theorem_1`."""
    names = []
    for kind, (_, numbers, _) in STATEMENTS.items():
        for value in getattr(flags, kind):
            if value not in list(numbers):
                raise SettingError(f"--{kind} must be {', '.join(numbers[:-1])} or {numbers[-1]}, found '{value}'")
            names.append(f"{kind}_{value}")
    if flags.all:
        names = [f"{kind}_{number}" for kind, (_, numbers, _) in STATEMENTS.items() for number in numbers]
    if flags.phase:
        names.append("phase")
    if not names:
        raise SettingError(
            "give a statement: --lemma, --theorem, --corollary, --figure, --phase or --all, found none (--help lists "
            "the flags)"
        )
    return names


def _options(flags: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, after a check of their ranges."""
    given = {name: getattr(flags, name) for name in OPTIONS if getattr(flags, name) is not None}
    # Noise on half of the coordinates needs two of them.
    least = {"seed": 0, "seeds": 1, "dim": 2, "depth": 1, "steps": 1}
    for name, low in least.items():
        if name in given and given[name] < low:
            raise SettingError(f"--{name} must be at least {low}, found {given[name]}")
    if "seed" in given and given["seed"] + given.get("seeds", 8) >= 2**32:
        raise SettingError(f"--seed must be below 2^32 with all its seeds, found {given['seed']}")
    for value in given.get("amplitude", []):
        if not 0 <= value <= MAX_AMPLITUDE:
            raise SettingError(f"--amplitude must be from 0 to {MAX_AMPLITUDE:g}, found {value:g}")
    return given


def _folder(path: str) -> pathlib.Path:
    """Makes the output folder and tests that it can be written to, before anything is computed."""
    folder = pathlib.Path(path)
    with refusing(folder, "--out", ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def _start_jax(x64: bool) -> None:
    """Sets the precision and one CPU device per core. This must precede JAX's first use of a device."""
    import jax

    jax.config.update("jax_enable_x64", x64)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)


def _function(name: str) -> Callable[..., Any]:
    module = "phase" if name == "phase" else STATEMENTS[name.partition("_")[0]][0]
    return getattr(importlib.import_module(f"dcjax.toy.statements.{module}"), name)


def _check_options(names: list[str], functions: list[Callable[..., Any]], given: dict[str, Any]) -> None:
    """Refuses options that none of the statements takes."""
    taken = set().union(*(inspect.signature(function).parameters for function in functions))
    for option in given:
        if option not in taken:
            known = ", ".join(f"--{name}" for name in OPTIONS if name in taken)
            raise SettingError(f"--{option} has no use in {' and '.join(names).replace('_', ' ')}, which takes {known}")
    if len(given.get("amplitude", [])) > 1 and names != ["figure_3"]:
        raise SettingError(f"--amplitude takes several values in figure 3 alone, found {len(given['amplitude'])}")


def _run(name: str, function: Callable[..., Any], given: dict[str, Any], out: pathlib.Path) -> tuple[bool, str]:
    """Runs one statement, prints its table and writes its files. Returns whether it holds, and its summary line."""
    from dcjax.toy.statements.claims import as_json, as_text
    from dcjax.toy.statements.setups import DivergedError

    parameters = inspect.signature(function).parameters
    options = {key: given.get(key, parameter.default) for key, parameter in parameters.items()}
    if name != "figure_3" and isinstance(options.get("amplitude"), list):
        (options["amplitude"],) = options["amplitude"]
    try:
        report = function(**options)
    except DivergedError as error:
        causes = " or ".join(f"--{option}" for option in ("amplitude", "depth", "dim") if option in options)
        raise SettingError(f"{causes} must be smaller in {name.replace('_', ' ')}: {error}") from error
    print(as_text(report))
    figure, numbers = out / f"{name}.png", out / f"{name}.json"
    with refusing(out, "--out", ELSEWHERE):
        report.draw(figure)
        replace_text(numbers, json.dumps(as_json(report, options), indent=1))
    print(f"\n  {figure}\n  {numbers}\n")
    held = sum(check.holds for check in report.checks)
    return report.holds, f"{name:12} {held:2} of {len(report.checks):2} claims hold"


if __name__ == "__main__":
    cli.run(main)
