"""What only an accelerator can show; run with `DCJAX_TEST_PLATFORM=gpu python -m pytest -m gpu`."""

import jax
import numpy as np
import pytest
from helpers import tiny_config

from dcjax.pretrain import pretrain
from dcjax.probe import load_run, probe
from dcjax.training.metrics import read_metrics

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    assert jax.default_backend() != "cpu", "no accelerator found: set DCJAX_TEST_PLATFORM"
    workdir = tmp_path_factory.mktemp("gpu") / "run"
    pretrain(tiny_config(total_steps=2, data__image_size=16, batch_size=64), workdir)
    return workdir


def test_training_computes_in_bfloat16_and_stays_near_float32(run, tmp_path):
    experiment, _, _ = load_run(run)
    assert experiment.network.encoder.dtype == jax.numpy.bfloat16
    assert experiment.exact_network.encoder.dtype == jax.numpy.float32
    wide = tiny_config(total_steps=2, data__image_size=16, batch_size=64, model__dtype="float32")
    pretrain(wide, tmp_path / "wide")
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (run, tmp_path / "wide")]
    np.testing.assert_allclose(*losses, rtol=0.05)  # 8 bits, some tens of layers


def test_features_equal_those_of_the_cpu(run):
    experiment, variables, _ = load_run(run)
    features = experiment.features(variables, experiment.test_source)
    batch = next(experiment.eval_batches(experiment.test_source))
    with jax.default_device(jax.devices("cpu")[0]):
        images = experiment.normalized(jax.numpy.asarray(batch["image"]))
        r, _, _ = experiment.exact_network.apply(jax.device_get(variables), images, train=False)
    np.testing.assert_allclose(features.r[: len(r)], r, rtol=1e-3, atol=1e-4 * features.r.max())


def test_a_run_resumes_and_is_probed(run):
    state = pretrain(tiny_config(total_steps=3, data__image_size=16, batch_size=64), run, extend=True)
    assert int(state.step) == 3
    assert probe(run, features="all")["r"].top1 > 0.2
