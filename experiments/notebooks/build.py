"""Makes each notebook from its text: edit the `.md`; the `.ipynb` has the same cells and their outputs.

    python experiments/notebooks/build.py                  executes both and writes the .ipynb files
    python experiments/notebooks/build.py theory --check   executes one at small size and writes nothing

Needs `pip install -e '.[notebooks]'`, or an environment with those packages and JAX where the first cell of a notebook
shall install the package itself: `DCJAX_SOURCE=.` makes it take this checkout. A cell that fails, a false assertion
included, ends the command with its traceback and exit status 1.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jupytext
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = ("theory", "train_and_diagnose")
CELL_SECONDS = 1800


def read_text(name: str) -> Any:
    """The notebook that a text describes, without outputs; cells are numbered, so that the same text gives the same
    file."""
    notebook = jupytext.read(FOLDER / f"{name}.md")
    notebook.metadata.pop("jupytext", None)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i:02d}"
    return notebook


def execute(notebook: Any) -> None:
    """Runs all cells in a kernel of this Python, in an empty folder, and keeps what they print and draw."""
    import nbclient  # not needed to compare a notebook with its text

    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = nbclient.NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources=resources,
            coalesce_streams=True,
            record_timing=False,
        )
        client.execute()
        clean(notebook, folder)


def clean(notebook: Any, folder: str) -> None:
    """Makes paths below the working folder relative and leaves out what belongs to this machine."""
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                output["text"] = output["text"].replace(f"{os.path.realpath(folder)}/", "").replace(f"{folder}/", "")


def main(argv: Sequence[str]) -> None:
    """Parses the command line, executes, and writes unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(NAMES)} (default: both)")
    parser.add_argument("--check", action="store_true", help="execute at small size, write nothing")
    flags = parser.parse_args(argv)
    if unknown := set(flags.names) - set(NAMES):
        parser.error(f"there is no notebook {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    os.environ["DCJAX_NOTEBOOK_SMALL"] = str(int(flags.check))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's remarks on a busy machine do not belong in a notebook
    os.environ.pop("MPLBACKEND", None)  # the kernel has its own, which keeps the plots
    if "DCJAX_SOURCE" in os.environ and os.path.isdir(os.environ["DCJAX_SOURCE"]):
        os.environ["DCJAX_SOURCE"] = os.path.abspath(os.environ["DCJAX_SOURCE"])  # the kernel runs elsewhere
    for name in flags.names or NAMES:
        start = time.perf_counter()
        notebook = read_text(name)
        execute(notebook)
        if not flags.check:
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {len(notebook.cells)} cells in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
