"""The results of single runs: one small JSON file each, checked before it is averaged with others."""

import ast
import fnmatch
import hashlib
import io
import json
import pathlib
import subprocess
import tokenize
from typing import Any

import dcjax
from dcjax import schema
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text

FORMAT = 1
KEYS = ("config", "data", "code", "platform", "loss", "scores", "spectra")
RESULTS = pathlib.Path(__file__).parent / "results"
EQUAL_CODE = RESULTS / "runs" / "equal_code.json"

# These parts of the package do not affect a run's numbers: the theory, commands, messages, plots, preparation, and the
# reading of configs, whose keys are compared one by one. All other files count, so that a new or moved one is not
# overlooked.
NOT_TRAINING = (
    "__init__.py", "__main__.py", "aot/*", "collapse/__init__.py", "collapse/__main__.py", "collapse/classes.py",
    "collapse/forecast.py", "collapse/geometry.py", "collapse/lasting.py", "collapse/local.py", "collapse/metrics.py",
    "collapse/monitor.py", "collapse/plot.py", "collapse/quantities.py", "collapse/reading/*", "collapse/report.py",
    "collapse/running.py", "collapse/verdict.py", "collapse/views.py", "collapse/weights.py", "compile.py",
    "config.py", "data/array_record.py", "data/prepare.py", "data/resize.py", "encoder.py",
    "evaluation/embeddings.py", "evaluation/table.py", "main.py", "models/torch_weights.py", "probe.py", "report/*",
    "runtime/cli.py", "runtime/compile_cache.py", "runtime/errors.py", "runtime/files.py", "runtime/lock.py",
    "runtime/processes.py", "runtime/reading.py", "runtime/signals.py", "runtime/versions.py", "schema.py", "toy/*",
    "training/checkpoint.py", "training/kept_lines.py", "training/logs.py", "training/manifest.py",
    "training/metrics.py", "training/monitor.py", "training/not_finite.py", "training/repeat.py", "training/search.py",
    "training/signals.py", "training/watchdog.py", "verify.py",
)  # fmt: skip


def code_fingerprint(root: pathlib.Path | None = None) -> str:
    """A hash of the files that train and evaluate, without their comments, docstrings and blank lines."""
    root = root or pathlib.Path(dcjax.__file__).parent
    digest, count = hashlib.sha256(), 0
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if name.parts[0] == "configs" or any(fnmatch.fnmatch(name.as_posix(), p) for p in NOT_TRAINING):
            continue  # configs are compared key by key
        count += 1
        digest.update(name.as_posix().encode() + b"\0" + bare_source(file.read_text()).encode())
    if not count:
        raise ValueError(f"{root} holds no Python files")
    return digest.hexdigest()[:16]


def bare_source(text: str) -> str:
    """Python source without comments, docstrings, blank lines and spaces at the ends of lines."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or ast.get_docstring(node) is None:
            continue
        docstring = node.body[0]
        first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
        for row in range(first, last + 1):
            text_before = lines[row].encode()[: docstring.col_offset].decode() if row == first else ""
            text_after = lines[row].encode()[docstring.end_col_offset :].decode() if row == last else ""
            lines[row] = text_before + text_after
    return "\n".join(line.rstrip() for line in lines if line.strip())


def same_code(one: str, other: str) -> bool:
    """Whether two fingerprints are equal, or `equal_code.json` says (with the reason) that they give equal runs."""
    if one == other:
        return True
    groups = json.loads(EQUAL_CODE.read_text()) if EQUAL_CODE.exists() else []
    return any({one, other} <= set(group["fingerprints"]) for group in groups)


def run_config(config: Any) -> dict[str, Any]:
    """The keys that identify a run and its scores: all but those for the place of its data and for its reports."""
    free = {name for name, key in schema.KEYS.items() if key.rule.may_change and not name.startswith("probe.")}
    free |= {"probe.after_training", "probe.eval_batch_size"}
    return {key: value for key, value in schema.flatten(config).items() if key not in free}


def commit() -> str:
    """The commit of the working tree, for the record alone; "unknown" outside of a repository."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_result(file: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes a result, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rounded(result).items()]
    replace_text(file, "{\n" + ",\n".join(lines) + "\n}\n")


def rounded(value: Any) -> Any:
    """A copy in which floats have 6 digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def read_result(file: pathlib.Path, *, config: Any) -> dict[str, Any]:
    """Reads a result and checks that its run had a given config.

    Args:
      file: a file that `write_result` wrote.
      config: the config that the run must have had.

    Raises:
      SettingError: another format or config, or a file that is damaged.
    """
    remedy = "move it away to run this row again"
    try:
        result = json.loads(file.read_text())
        found = result["format"]
        missing = [key for key in KEYS if key not in result]
        if found == FORMAT and missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{file} cannot be read as a result ({error}); {remedy}") from error
    if found != FORMAT:
        raise SettingError(f"{file} has the format {found}, expected {FORMAT}; {remedy}")
    expected = rounded(run_config(config))
    differing = [
        f"{key} ({result['config'].get(key, 'absent')} there, {expected.get(key, 'absent')} here)"
        for key in sorted(result["config"].keys() | expected.keys())
        if result["config"].get(key) != expected.get(key)
    ]
    if differing:
        raise SettingError(f"{file} is of another config: {', '.join(differing[:5])}; {remedy}")
    return result


def check_together(results: dict[pathlib.Path, dict[str, Any]], *, code: str | None = None) -> None:
    """Raises `SettingError` unless all results have the same data, platform and training code.

    Args:
      results: file to result.
      code: the fingerprint of the present code, where it will make more runs to average with these; None otherwise.
    """
    if not results:
        return
    (first_file, first), *others = results.items()
    for file, result in others:
        if result["data"] != first["data"]:
            raise SettingError(f"{file} was trained on other images than {first_file}; move one of them away")
        if result["platform"] != first["platform"]:
            raise SettingError(
                f"{file} was made on {result['platform']}, {first_file} on {first['platform']}, which compute in other "
                "precisions; move one of them away"
            )
    expected = code or first["code"]
    for file, result in results.items():
        if not same_code(result["code"], expected):
            raise SettingError(
                f"{file} comes from other training code ({result['code']} there, {expected} here); move it and "
                f"the run's folder away to run it again, or say in {EQUAL_CODE.name} why both give the same runs"
            )
