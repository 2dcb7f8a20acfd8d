"""Reading within bounds: kinds of files, sizes, JSON, and the logs of a run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dcjax.collapse import __main__ as collapse
from dcjax.collapse.reading import array_files, open_matrices
from dcjax.config import read_config
from dcjax.data.prepare import resize_of
from dcjax.evaluation.table import losses_line
from dcjax.runtime import reading
from dcjax.runtime.errors import SettingError
from dcjax.runtime.reading import (
    MAX_DEPTH,
    UnfitFileError,
    count_values,
    parse_json,
    read_file,
    read_json,
    read_log,
    read_text,
)
from dcjax.training.metrics import read_lines


def test_only_regular_files_of_a_bounded_size(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UnfitFileError, match=r"a has 5 bytes; at most 4 are read"):
        read_file(tmp_path / "a", 4)
    os.truncate(tmp_path / "a", 2**40)  # sparse
    with pytest.raises(UnfitFileError, match="1,099,511,627,776 bytes"):
        read_file(tmp_path / "a", 2**28)
    os.mkfifo(tmp_path / "pipe")
    for path, problem in ((tmp_path / "pipe", "not a regular"), (tmp_path, "a folder"), ("/dev/zero", "not a regular")):
        with pytest.raises(UnfitFileError, match=problem):
            read_file(path, 9)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none", 9)
    with pytest.raises(SettingError, match="none is missing"):
        read_text(tmp_path / "none", 9)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65, "9" * 5000, "", "{"]
)
def test_json_that_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"nested too deeply|digits|Expecting"):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SettingError, match=r"a\.json cannot be read"):
        read_json(tmp_path / "a.json", 10**6)


def test_json_that_is_read(tmp_path):
    depth = MAX_DEPTH
    assert parse_json("[" * depth + "]" * depth)
    assert parse_json(json.dumps([[]] * 1000)) == [[]] * 1000
    assert np.isnan(parse_json("NaN"))
    with pytest.raises(ValueError, match="NaN is no JSON"):
        parse_json("[NaN]", constants=False)
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(SettingError, match="not a JSON object"):
        read_json(tmp_path / "a.json", 9)


def test_a_log_with_damaged_lines(tmp_path):
    lines = ['{"step": 1, "loss": 2}', "[1]", "{torn", '{"loss": 1}', '{"step": 2, "loss": "x"}', '{"step": 3, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    log = read_log(tmp_path / "metrics.jsonl", 10**6)
    assert ([row["step"] for row in log.rows], log.bad, log.cut_short) == ([1, 2], [2, 3, 4], True)
    assert losses_line(tmp_path) == "loss: 2.000 at step 1, 2.000 at step 1"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2, "monitor": [1]}\n{"step": 4}\n')
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [4]
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert "not a regular file" in losses_line(tmp_path)


def test_the_values_of_a_log_are_bounded(tmp_path, monkeypatch):
    """Its bytes are no measure of its memory: an empty list takes two of them."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": [[],[],[]]}\n' * 3)
    assert count_values({"step": 1, "x": [[], [], []]}) == 6
    monkeypatch.setattr(reading, "MAX_VALUES", 17)
    with pytest.raises(SettingError, match=r"metrics.jsonl has more than 17 values; no more are read"):
        read_log(path, 10**6)
    monkeypatch.setattr(reading, "MAX_VALUES", 18)
    assert len(read_log(path, 10**6).rows) == 3
    monkeypatch.setattr(reading, "MAX_LINES", 2)
    with pytest.raises(SettingError, match="has more than 2 lines"):
        read_log(path, 10**6)
    with pytest.raises(SettingError, match="has 87 bytes; at most 86 are read"):
        read_log(path, 86)


def test_blank_lines_at_the_end_of_a_log_do_not_count(tmp_path):
    (tmp_path / "log").write_text('{"step": 1}\n\n{"step": 2}\n\n\n')
    log = read_log(tmp_path / "log", 99)
    assert ([row["step"] for row in log.rows], log.bad, log.cut_short) == ([1, 2], [2], False)
    (tmp_path / "log").write_text('{"step": 1}\n{"st\n\n')
    assert (read_log(tmp_path / "log", 99).bad, read_log(tmp_path / "log", 99).cut_short) == ([], True)
    (tmp_path / "log").write_text('{"step": 1}\n{"st\n\n{"step": 2}\n')
    assert (read_log(tmp_path / "log", 99).bad, read_log(tmp_path / "log", 99).cut_short) == ([2, 3], False)


def test_names_in_a_config_are_made_printable(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a\n\x1b[2J" + "x" * 9000: 1}))
    with pytest.raises(SettingError) as caught:
        read_config(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["[1]", '{"dcjax_resize": "x"}', "[" * 9999, "{"])
def test_a_plan_of_another_kind_has_no_resize(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    assert resize_of(tmp_path) is None


def test_weights_are_bounded_together(tmp_path, monkeypatch):
    np.savez(tmp_path / "w.npz", a=np.ones((8, 8)), b=np.ones((8, 8)))
    monkeypatch.setattr(collapse, "MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(SettingError, match=r"holds 1,024 bytes of matrices; at most 1,000"):
        collapse._weights(str(tmp_path / "w.npz"))


def test_large_arrays_are_not_inflated_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "MAX_DEFLATED_COLUMNS", 500)
    np.savez_compressed(tmp_path / "rows.npz", np.ones((20, 8)))
    np.savez_compressed(tmp_path / "columns.npz", np.asfortranarray(np.ones((20, 8))))
    assert open_matrices(tmp_path / "rows.npz")
    with pytest.raises(ValueError, match="by columns, deflated; store them by rows"):
        open_matrices(tmp_path / "columns.npz")


def test_reading_loads_no_jax():
    code = "import sys, dcjax.runtime.reading, dcjax.report.record; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
