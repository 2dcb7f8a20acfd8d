"""README's section on results is what the committed files give, and shows no number that no file holds."""

import json
import re
import shutil

import pytest
from helpers import ROOT
from test_grid import results_of_two_seeds

from dcjax.runtime.errors import SettingError
from experiments import figure7, results_table, subvector, table1, table2
from experiments.records import RESULTS


def cells(text, label):
    """The cells after the first of the row with a label."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_readme_shows_the_committed_results():
    readme = results_table.README.read_text()
    assert results_table.insert(readme) == readme, "run python -m experiments.results_table"


def test_what_readme_links_to_is_there():
    links = re.findall(r"\]\((experiments/results/[^)#]+)", results_table.section())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.fixture
def with_grids(tmp_path):
    """A folder of results with tables of two seeds of two rows, made-up and from digits."""
    results_of_two_seeds(tmp_path)
    for module in (table1, table2, subvector, figure7):
        module.main(
            ["--scale=digits", "--seeds=2", f"--results={tmp_path}", "--rows", *{"none", "direct"} & {*module.ROWS}]
        )
    return tmp_path


def test_a_scale_appears_with_its_first_table(with_grids):
    text = results_table.section(with_grids)
    assert "`--scale=digits`" in text
    assert "laptop" not in text
    # Two values one apart: t(0.975, 1) / 2 = 6.353.
    assert cells(text, "SimCLR, no projector") == [
        "51.5",
        "90.5 ± 6.4 (2)",
        "`python -m experiments.table1 --scale=digits`",
    ]
    assert cells(text, "DirectCLR") == ["62.7", "90.5 ± 6.4 (2)", "`python -m experiments.table1 --scale=digits`"]
    assert cells(text, "DirectCLR, r[:d0]") == [
        "47.9",
        "90.5 ± 6.4 (2)",
        "`python -m experiments.subvector --scale=digits`",
    ]
    assert "SimCLR, linear projector" not in text  # not run
    assert text.count("\n| SimCLR, no projector |") == 1  # a row of two tables, shown once
    assert cells(text, "0.001 of the largest, of 64 (`digits`)") == ["1", "1"]
    assert cells(text, "1e-06 of the largest, of 64 (`digits`)") == ["0", "0"]
    assert "![Spectra of r with and without a projector" in text
    assert "(experiments/results/figure7_digits.png)" in text


def test_photographs_come_before_digits(with_grids):
    for name in ("table1", "figure7"):
        for suffix in ("json", "png"):
            shutil.copy(with_grids / f"{name}_digits.{suffix}", with_grids / f"{name}.{suffix}")
    table = json.loads((with_grids / "table1.json").read_text())
    table["none"] |= {"seeds": 1, "converged": False, "top1": {"mean": 49.44, "half_width": None}}
    (with_grids / "table1.json").write_text(json.dumps(table))
    text = results_table.section(with_grids)
    assert cells(text, "SimCLR, no projector")[1:3] == ["49.4 (1, probe not converged)", "90.5 ± 6.4 (2)"]
    assert "(experiments/results/figure7.png)" in text
    (with_grids / "figure7.png").unlink()
    assert "(experiments/results/table1.png)" in results_table.section(with_grids)


def test_single_results_are_read_from_their_files(tmp_path):
    assert results_table.section(tmp_path) == ""
    shutil.copy(RESULTS / "mechanism.json", tmp_path)
    record = json.loads((RESULTS / "quickstart.json").read_text())
    record["scores"]["r"]["top1"] = 0.12345
    (tmp_path / "quickstart.json").write_text(json.dumps(record))
    text = results_table.section(tmp_path)
    assert cells(text, "quickstart (digits, 300 steps)")[0] == "12.3 %"
    zero = json.loads((RESULTS / "mechanism.json").read_text())["exact zeros"]["r"]
    assert cells(text, "DirectCLR: channels without gradient")[1].startswith(f"at r {zero} of 64")
    assert "Figure 1" not in text
    assert "CIFAR" not in text


def test_the_text_around_the_markers_stays(tmp_path):
    begin, end = results_table.BEGIN, results_table.END
    written = results_table.insert(f"# before\n\n{begin}\nold\n{end}\n\nafter\n")
    assert written == f"# before\n\n{begin}\n\n{results_table.section()}\n\n{end}\n\nafter\n"
    assert results_table.insert(written) == written
    for text in ("none", f"{end}\n{begin}\n", f"{begin}\n", f"{begin}\n{end}\n{begin}\n{end}\n"):
        with pytest.raises(SettingError, match="needs one line"):
            results_table.insert(text)
