"""The page on other packages is what the committed numbers give, and the command names what is not installed."""

import copy
import importlib.util
import json

import pytest

from dcjax.runtime.errors import SettingError
from experiments.metrics_elsewhere.__main__ import main
from experiments.metrics_elsewhere.causes import CAUSES, EXPLAINED
from experiments.metrics_elsewhere.page import PAGE, render
from experiments.records import RESULTS


@pytest.fixture(scope="module")
def results():
    return json.loads((RESULTS / "metrics_elsewhere.json").read_text())


def test_page_shows_the_committed_numbers(results):
    page = PAGE.read_text()
    assert render(results) == page, "run python -m experiments.metrics_elsewhere"
    assert "[[" not in page


def test_every_cause_explains_a_difference(results):
    assert set(results["checks"]) == set(CAUSES)
    assert all(check["largest difference"] <= EXPLAINED for check in results["checks"].values())
    assert f"\n{len(CAUSES)}. " in render(results)


def test_dcjax_has_the_closed_forms(results):
    for title, rows in results["tables"].items():
        for name, row in rows.items():
            if row.get("closed form", "nan") != "nan":
                assert row["dcjax"] == pytest.approx(row["closed form"], rel=1e-5, abs=1e-9), (title, name)


def test_dcjax_has_the_papers_lidar_and_the_dimension_of_distinct_rows(results):
    lidar = [row for row in results["tables"]["LiDAR"].values() if "dcjax" in row]
    assert len(lidar) == 2
    for row in lidar:
        assert row["dcjax"] == pytest.approx(row["paper, delta 1e-4"], rel=1e-5)  # of rounded numbers
    for title in ("TwoNN, linear fit", "TwoNN, maximum likelihood"):
        assert len({row["dcjax"] for row in results["tables"][title].values()}) == 1


def test_an_unexplained_difference_is_an_error(results):
    changed = copy.deepcopy(results)
    changed["tables"]["IsoScore"]["rank 30"]["IsoScore"] = 0.5
    with pytest.raises(ValueError, match=r"IsoScore is 0\.5 and dcjax .*, and no cause is known"):
        render(changed)


def test_a_missing_package_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skdim" else object())
    with pytest.raises(SettingError) as error:
        main([])
    message = str(error.value)
    assert "missing scikit-dimension==0.5.0;" in message
    assert "pip install embedding-quality==0.1.1 " in message
    assert "\n" not in message
