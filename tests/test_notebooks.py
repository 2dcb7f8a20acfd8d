"""The notebooks as they are committed; `.ci/notebooks` executes them."""

import importlib.metadata
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "experiments" / "notebooks"
NAMES = ("theory", "train_and_diagnose")
PLACEHOLDER = "OWNER/dcjax"


def load(name):
    """A committed notebook, as JSON."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def sources(name, kind="code"):
    return ["".join(cell["source"]) for cell in load(name)["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_the_cells_of_its_text(name):
    pytest.importorskip("jupytext")
    from experiments.notebooks import build

    def essence(cells):
        return [(cell["id"], cell["cell_type"], "".join(cell["source"])) for cell in cells]

    text, notebook = build.read_text(name), load(name)
    assert essence(text.cells) == essence(notebook["cells"])
    assert dict(text.metadata) == notebook["metadata"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_on_a_tpu_in_colab(name):
    metadata = load(name)["metadata"]
    assert metadata["accelerator"] == "TPU"
    assert metadata["colab"] == {"gpuType": "V5E1"}
    assert metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_executed_from_top_to_bottom(name):
    cells = [cell for cell in load(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    plots = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(plots) >= 4
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users)/", text)  # no path of the machine that executed it


@pytest.mark.parametrize("name", NAMES)
def test_each_section_asserts_what_it_computed(name):
    sections = [source for source in sources(name) if not source.startswith("# @title")]
    assert len(sections) >= 4
    for source in sections:
        assert re.search(r"^ *assert ", source, re.MULTILINE), source[:80]


def test_the_first_cells_differ_in_the_name_alone():
    first = {name: sources(name)[0].replace(f'NOTEBOOK = "{name}"', "") for name in NAMES}
    assert first["theory"] == first["train_and_diagnose"] != sources("theory")[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_repository_stands_in_one_place(name):
    text = (FOLDER / f"{name}.md").read_text()
    assert text.count(PLACEHOLDER) == 1
    assert f'REPOSITORY = "{PLACEHOLDER}"' in text


@pytest.fixture
def run_setup(monkeypatch):
    """Runs the first cell on a pretended machine; what it displayed and the pip commands that it gave."""

    def run(*, platform, packages, importable, backend=None):
        commands, shown = [], []

        def version(name):
            if name not in packages:
                raise importlib.metadata.PackageNotFoundError(name)
            return packages[name]

        page = types.ModuleType("IPython.display")
        page.__dict__.update(HTML=str, display=shown.append)
        monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", page)
        monkeypatch.setenv("JAX_PLATFORMS", platform)
        monkeypatch.setattr(jax, "default_backend", lambda: backend or {"cuda": "gpu"}.get(platform, platform))
        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command[4:]))
        if not importable:
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        exec(compile(sources("theory")[0], "setup", "exec"), {})
        return shown, commands

    return run


COLAB = {"jax": "0.7.2"}


def test_an_importable_package_is_not_installed_again(run_setup, capsys):
    shown, commands = run_setup(platform="cpu", packages=COLAB, importable=True)
    assert commands == []
    assert f"colab.research.google.com/github/{PLACEHOLDER}/blob/main/experiments/notebooks/theory.ipynb" in shown[0]
    assert "on cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("platform", "packages", "extra"),
    [
        ("cpu", COLAB, ""),
        ("tpu", {**COLAB, "libtpu": "0.0.17"}, ""),
        ("cuda", {**COLAB, "jax-cuda12-plugin": "0.7.2"}, ""),
        ("tpu", COLAB, "[tpu]"),
        ("cuda", COLAB, "[cuda12]"),
    ],
)
def test_an_installation_keeps_jax_and_adds_a_plugin_only_where_it_is_missing(run_setup, platform, packages, extra):
    _, commands = run_setup(platform=platform, packages=packages, importable=False)
    address = f"dcjax{extra} @ git+https://github.com/{PLACEHOLDER}"
    assert commands == [["--quiet", address, "jax==0.7.2"]]


def test_an_installation_takes_a_checkout(run_setup, monkeypatch, tmp_path):
    monkeypatch.setenv("DCJAX_SOURCE", str(tmp_path))
    _, commands = run_setup(platform="cpu", packages=COLAB, importable=False)
    assert commands == [["--quiet", f"dcjax @ {tmp_path.resolve().as_uri()}", "jax==0.7.2"]]


def test_a_runtime_whose_accelerator_jax_does_not_use_is_refused(run_setup):
    with pytest.raises(AssertionError, match="JAX uses 'cpu' on a machine with a 'tpu': restart the runtime"):
        run_setup(platform="tpu", packages=COLAB, importable=True, backend="cpu")
