"""Imports go one way: from the commands down over the loop and its parts to losses, collapse, toy and the errors."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent

PLAIN = {
    "runtime.cli",
    "runtime.compile_cache",
    "runtime.errors",
    "runtime.files",
    "runtime.lock",
    "runtime.reading",
    "runtime.signals",
    "runtime.versions",
}
LAYERS = [
    PLAIN,
    {"losses", "collapse", "toy"},
    {"models", "runtime", "data"},
    {"training", "evaluation"},
    {"schema"},
    {"config"},
    {"components", "program"},
    {"aot"},
    {"resume"},
    {"pretrain", "encoder"},
    {"evaluation.baselines", "evaluation.embeddings"},
    {"evaluation.protocol"},
    {"main", "probe", "verify", "compile", "__main__", "collapse.__main__", "report"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NO_FLAX = PLAIN | {"losses", "collapse", "toy"}
CONFIG_READERS = {"schema", "config", "components", "pretrain", "resume"}


def part_of(module: str) -> str | None:
    """The entry of `LEVEL` that a module below dcjax belongs to: `runtime.errors`, or else its first name."""
    names = module.split(".")
    if names == ["runtime"]:  # itself it is empty; of interest is what is taken from it
        return None
    return next((name for name in (".".join(names[:2]), names[0]) if name in LEVEL), None)


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


def package_files() -> list[tuple[str | None, pathlib.Path]]:
    """(part, file) for every file below dcjax, but for the package's own and for empty ones."""
    base = ROOT / "dcjax"
    files = [file for file in sorted(base.rglob("*.py")) if file != base / "__init__.py" and imports_of(file)]
    return [(part_of(".".join(file.relative_to(base).with_suffix("").parts)), file) for file in files]


def test_every_part_has_a_layer():
    assert not [file for part, file in package_files() if part is None]


def test_imports_go_down():
    for part, file in package_files():
        for name in imports_of(file):
            imported = part_of(name.removeprefix("dcjax."))
            if name.startswith("dcjax.") and imported not in (None, part):
                assert LEVEL[imported] <= LEVEL[part], f"{file} imports {name}"


def test_bottom_parts_know_neither_flax_nor_each_other():
    for part, file in package_files():
        if part in NO_FLAX:
            names = imports_of(file)
            assert not any(name.split(".")[0] == "flax" for name in names), file
            allowed = {part} | PLAIN | ({"collapse"} if part == "toy" else set())
            found = {part_of(name.removeprefix("dcjax.")) for name in names if name.startswith("dcjax.")}
            assert found - {None} <= allowed, file


def test_configs_end_at_the_entry_points():
    for part, file in package_files():
        if part not in CONFIG_READERS:
            assert not any(name.split(".")[0] == "ml_collections" for name in imports_of(file)), file


def test_the_package_imports_nothing_around_it():
    for _, file in package_files():
        assert not any(name.split(".")[0] in ("experiments", "configs", "tests") for name in imports_of(file)), file


def test_configs_import_ml_collections_and_the_schema_only():
    for file in (ROOT / "configs").glob("*.py"):
        for name in imports_of(file):
            assert name.split(".")[0] in ("ml_collections", "configs") or name.startswith("dcjax.schema"), file
