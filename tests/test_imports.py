"""Imports go one way: from the commands down over the loop and its parts to losses, collapse, toy and the errors."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent

LAYERS = [
    {"errors", "files", "cli", "versions"},
    {"losses", "collapse", "toy"},
    {
        "models",
        "optim",
        "mesh",
        "data",
        "checkpoint",
        "state",
        "metrics_writer",
        "streams",
        "monitor",
        "evaluation",
        "report",
    },
    {"config", "processes"},
    {"experiment"},
    {"pretrain"},
    {"probe"},
    {"main"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NO_FLAX = {"errors", "files", "cli", "versions", "losses", "collapse", "toy"}
CONFIG_READERS = {"config", "experiment", "pretrain", "probe", "main"}


def imports_of(file: pathlib.Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_files() -> list[tuple[str, pathlib.Path]]:
    """(part, file) for every file below dcjax; the part is the subpackage or the module's name."""
    base = ROOT / "dcjax"
    files = [file for file in sorted(base.rglob("*.py")) if file != base / "__init__.py"]
    return [(file.relative_to(base).parts[0].removesuffix(".py"), file) for file in files]


def test_every_part_has_a_layer():
    assert {part for part, _ in package_files()} <= LEVEL.keys()


def test_imports_go_down():
    for part, file in package_files():
        for name in imports_of(file):
            if name.startswith("dcjax."):
                imported = name.split(".")[1]
                if imported in LEVEL and imported != part:
                    assert LEVEL[imported] <= LEVEL[part], f"{file} imports {name}"


def test_bottom_parts_know_neither_flax_nor_each_other():
    for part, file in package_files():
        if part in NO_FLAX:
            names = imports_of(file)
            assert not any(name.split(".")[0] == "flax" for name in names), file
            # cli: the commands `python -m dcjax.toy` and `python -m dcjax.collapse` answer mistakes as all others do.
            allowed = {part, "errors", "files", "cli"} | ({"collapse"} if part == "toy" else set())
            assert {name.split(".")[1] for name in names if name.startswith("dcjax.")} <= allowed, file


def test_configs_end_at_the_entry_points():
    for part, file in package_files():
        if part not in CONFIG_READERS:
            assert not any(name.split(".")[0] == "ml_collections" for name in imports_of(file)), file


def test_the_package_imports_nothing_around_it():
    for _, file in package_files():
        assert not any(name.split(".")[0] in ("experiments", "configs", "tests") for name in imports_of(file)), file


def test_configs_import_ml_collections_only():
    for file in (ROOT / "configs").glob("*.py"):
        assert {name.split(".")[0] for name in imports_of(file)} <= {"ml_collections", "configs"}, file
