"""The documents: their links lead somewhere, their commands are ones that the programs take, their Python runs."""

import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT, ParsedError, new_process, start_module

from dcjax.__main__ import COMMANDS

FOLDERS = ("", "docs", "experiments", "experiments/results")
DOCUMENTS = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.md"))


def name(file: pathlib.Path) -> str:
    return str(file.relative_to(ROOT))


def blocks(file: pathlib.Path, language: str) -> list[str]:
    """The fenced blocks of a document in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(file: pathlib.Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_links_lead_somewhere(file):
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(file: pathlib.Path) -> list[list[str]]:
    """The commands of a document's shell blocks that start the package or an experiment: module and arguments."""
    found = []
    for block in blocks(file, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["dcjax"]:
                found.append([COMMANDS[words[1]][0], *words[2:]])
            elif words[:2] == ["python", "-m"] and words[2].startswith(("dcjax.", "experiments.")):
                found.append(words[2:])
    return found


WITH_COMMANDS = [file for file in DOCUMENTS if commands(file)]


@pytest.mark.parametrize("file", WITH_COMMANDS, ids=name)
def test_commands_are_taken(file, stops_after_parsing, monkeypatch):
    for module, *arguments in commands(file):
        with pytest.raises(ParsedError):
            start_module(module, *arguments, monkeypatch=monkeypatch)


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_commands_within_sentences_exist(file):
    text = file.read_text()
    assert set(re.findall(r"`dcjax ([a-z]\w*)", text)) <= set(COMMANDS)
    for module in re.findall(r"`python -m ((?:dcjax|experiments)[\w.]*\w)", text):
        assert importlib.util.find_spec(module), module


def test_the_layout_names_every_file():
    words = set(re.findall(r"\w+", (ROOT / "docs/layout.md").read_text()))
    files = [file for file in (ROOT / "dcjax").rglob("*.py") if file.parent.name != "statements"]
    assert {file.stem for file in files if file.stem != "__init__"} <= words


@pytest.mark.slow
def test_python_runs(tmp_path):
    """Each block in a process of its own, as a reader would paste it, beside a run of the quickstart."""
    shorter = ("--config.total_steps=4", "--config.optimizer.warmup_steps=1", "--config.probe.after_training=False")
    train = [sys.executable, "-m", "dcjax", "main", "--config=configs/quickstart.py", *shorter]
    subprocess.run(train, cwd=tmp_path, env=new_process(), check=True)
    for file in DOCUMENTS:
        for block in blocks(file, "python"):
            done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=new_process())
            assert done.returncode == 0, f"{file}:\n{block}"
