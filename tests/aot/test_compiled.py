"""The compiled step of a config: what is counted, the largest batch, and mistakes."""

import dataclasses
import importlib.metadata
import json
import os
import re

import jax
import pytest
from helpers import tiny_config

from dcjax.aot import chips, compiled, parts, table, topology
from dcjax.aot.largest import largest_batch
from dcjax.aot.minimum import least_bytes
from dcjax.compile import main
from dcjax.components import make_modules
from dcjax.models import Network
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import make_mesh
from dcjax.schema import check_config


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """The command sets variables for the process of its own that it expects."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture(scope="module")
def config():
    return check_config(tiny_config(batch_size=8))


@pytest.fixture(scope="module")
def step(config):
    return compiled.compile_for(config, make_mesh(2), classes=10, images=1437, capacity=None)


def test_the_step_of_a_config(step):
    assert step.fits
    assert step.memory.total == step.used > step.memory.aliased > 0
    assert step.host_transfers == []
    kinds = {each.kind for each in step.collectives}
    assert "all-reduce" in kinds
    assert "all-to-all" not in kinds
    for part in (parts.AUGMENTATION, parts.FORWARD, parts.WEIGHT_GRADIENT, parts.LOSS, parts.OPTIMIZER, parts.SCALARS):
        assert step.bytes_by_part[part] > 0, part
    # Every operation of the step has a scope: what is left are copies and counters.
    assert step.bytes_by_part[parts.OTHER] < 0.02 * sum(step.bytes_by_part.values())


def test_text_and_json(step):
    chip = chips.CHIPS["v5e"]
    text, found = table.as_text(step, chip, hosts=1), table.as_dict(step, chip, hosts=1)
    assert "not a measurement" in text
    assert json.loads(json.dumps(found)) == found
    assert sum(part["traffic_bytes"] for part in found["parts"].values()) == found["traffic_bytes"]
    seconds = found["bound"]["seconds"]
    assert seconds["memory"] == found["traffic_bytes"] / chip.bandwidth
    assert found["bound"]["pairs_per_second"] == pytest.approx(8 / max(seconds.values()), rel=1e-3)


def test_the_least_bytes_of_a_block(config):
    network = Network(*make_modules(config), classes=10)
    found = least_bytes(network, image_size=8, pairs=4)
    # One block of 32 channels at 8 x 8, and the stem: three convolutions and one sum, float32, two views of 4 images.
    weights = 3 * 3 * (3 * 32 + 32 * 32 + 32 * 32) + 3 * 2 * 32
    views = 2 * 4 * (4 * 3 * 8 * 8)
    one_pass = 3 * (2 * 4 * 4 * 8 * 8 * 32)
    assert found[parts.FORWARD] == 2 * one_pass + views + 4 * weights
    assert found[parts.INPUT_GRADIENT] == 2 * one_pass + 4 * weights
    assert found[parts.WEIGHT_GRADIENT] == one_pass + views + 4 * weights
    assert found[parts.OPTIMIZER] == 5 * 4 * (weights + 32 * 10 + 10)  # with the classifier
    assert found[parts.HEADS] == 3 * 4 * (32 * 10 + 10)
    assert found[parts.MAX_POOL] == 0
    assert found[parts.RESIDUAL] == 5 * 2 * 4 * 4 * 8 * 8 * 32


def test_the_least_bytes_of_a_max_pool():
    stem = check_config(tiny_config(model__name="one_block", model__stem="imagenet", data__image_size=32))
    network = Network(*make_modules(stem), classes=10)
    # 32 channels at 8 x 8 after the pool, float32; two views of one image, five passes.
    assert least_bytes(network, image_size=32, pairs=1)[parts.MAX_POOL] == 5 * 2 * 4 * 8 * 8 * 32


@pytest.mark.parametrize(
    ("per_image", "first", "found"),
    [(1.0, 4, 896), (1.0, 64, 896), (1.0, 4096, 928), (20.0, 64, 44), (2000.0, 64, None)],
)
def test_the_largest_batch_lies_on_a_line_and_is_compiled(per_image, first, found):
    tried = []

    def fake(batch_size):
        tried.append(batch_size)
        # Above the line: the last percent does not fit, although the line says so.
        used = 50 + per_image * batch_size / 4 * (1.01 if batch_size > 500 else 1.0)
        memory = compiled.Memory(0, 0, 0, int(used), 0) if used <= 290 else None
        return compiled.CompiledStep(batch_size, 4, memory, int(used), 290)

    best = largest_batch(fake, fake(first))
    assert (best and best.batch_size) == found
    assert len(tried) <= 9


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--topology=v5e:3x3"], "'v5e:3x3' is not known; known: cpu:N; v4:"),
        (["--topology=h100"], "'h100' is not known"),
        (["--topology=v9:2x2"], "h100:SLICESxHOSTSxGPUS"),
        ([], "--topology"),
        (["--topology=cpu:8", "--config.batch_size=100"], "batch_size must be a multiple of the 8 device(s)"),
        (["--topology=cpu:8", "--config.batch_size=64", "--largest_batch"], "--largest_batch needs a device of known"),
        (["--topology=cpu:8", "--classes=-1"], "--classes"),
        (["--topology=cpu:8", "--config.devices=3"], "devices must be 0, since --topology=cpu:8 names them; found 3"),
        (["--topology=cpu:8", "--dump=pyproject.toml"], "--dump pyproject.toml cannot be written to (it is a file)"),
        (["--topology=cpu:8", "--images=0"], "--images"),
        (["--topology=cpu:8", "--config.augment.blur_sigma=(2.0,1.0)"], "blur_sigma"),
    ],
)
def test_mistakes(argv, named):
    with pytest.raises(SettingError, match=re.escape(named)):
        main([QUICKSTART, *argv])


def test_a_missing_compiler_and_one_of_another_jax(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=f"which is not installed; pip install 'jax.tpu.=={jax.__version__}'"):
        topology.topology_mesh("v5e:2x2")

    def version(name):
        if name == "jax-cuda12-plugin":
            return "0.4.1"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(topology.importlib.metadata, "version", version)
    with pytest.raises(SettingError, match=r"jax-cuda12-plugin is 0\.4\.1, but jaxlib is"):
        topology.topology_mesh("h100:1x1x1")


def test_a_step_that_does_not_fit_names_the_largest_batch(monkeypatch, step, capsys):
    def fake(config, mesh, **_):
        used = config.batch_size * 2**30
        memory = step.memory if used <= 40 * 2**30 else None
        return dataclasses.replace(
            step, batch_size=config.batch_size, devices=8, memory=memory, used=used, capacity=2**35
        )

    monkeypatch.setattr(compiled, "compile_for", fake)
    monkeypatch.setitem(chips.CHIPS, "cpu", chips.CHIPS["v5e"])
    with pytest.raises(
        SettingError, match=r"batch_size 64 does not fit on cpu:8: it needs 64\.00 GiB a device, .* is 32$"
    ):
        main([QUICKSTART, "--topology=cpu:8", "--config.batch_size=64"])


def test_the_program_is_written(monkeypatch, step, tmp_path, capsys):
    monkeypatch.setattr(compiled, "compile_for", lambda *_, **__: step)
    main([QUICKSTART, "--topology=cpu:8", "--config.batch_size=8", f"--dump={tmp_path / 'program'}", "--json"])
    assert (tmp_path / "program" / "train_step-cpu-8.hlo.txt").read_text() == step.text
    assert json.loads(capsys.readouterr().out)["topology"] == "cpu:8"
