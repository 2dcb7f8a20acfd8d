"""A loss, a projector, an encoder and a data set from outside: one class or function and one table row each."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config

import dcjax
from dcjax.data import SOURCES
from dcjax.evaluation.protocol import probe
from dcjax.losses import LOSSES, unit_rows
from dcjax.models import ENCODERS, PROJECTORS
from dcjax.pretrain import pretrain
from dcjax.program import make_loss
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import make_mesh
from dcjax.training.metrics import read_metrics


def alignment(z, z_prime, *, temperature):
    """A loss without negatives, and without `block_size`."""
    return 1 - jnp.mean(jnp.sum(unit_rows(z) * unit_rows(z_prime), axis=1)) / temperature


class Halves(nn.Module):
    """A projector without a setting: sums of two entries of r."""

    @nn.compact
    def __call__(self, r, *, train):
        return r[:, ::2] + r[:, 1::2]


class Perceptron(nn.Module):
    """An encoder without `width`, `stem` and BatchNorm."""

    dtype: type = jnp.float32
    features = 12

    @nn.compact
    def __call__(self, images, train):
        return nn.relu(nn.Dense(self.features, dtype=self.dtype)(images.reshape(len(images), -1)))


class Stripes:
    """Images of 8 x 8 pixels with stripes across or down."""

    name, classes, fingerprint = "stripes", ("across", "down"), "stripes"

    def __init__(self, split):
        self.first = 0 if split == "train" else 64

    def __len__(self):
        return 64 if self.first == 0 else 16

    def __getitem__(self, i):
        image = np.random.default_rng(self.first + i).integers(60, size=(8, 8, 3)).astype(np.uint8)
        image[(slice(None, None, 2), slice(None))[:: 1 - 2 * (i % 2)]] += 150
        return image, i % 2

    def image_name(self, i):
        return f"stripes {i}"


@pytest.fixture
def own_parts(monkeypatch):
    for table, entry in ((LOSSES, alignment), (PROJECTORS, Halves), (ENCODERS, Perceptron), (SOURCES, Stripes)):
        monkeypatch.setitem(table, "mine", entry)
    names = {f"{section}__name": "mine" for section in ("loss", "projector", "model", "data")}
    # The encoder refuses a width and a stem that it does not have.
    return tiny_config(**names, model__width=1.0, model__stem="imagenet", data__test_split="test")


def test_parts_from_outside_train_and_are_probed(tmp_path, own_parts):
    pretrain(own_parts, tmp_path / "run")
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path / "run"))
    own_parts.probe.labels_per_class = 0
    scores = probe(tmp_path / "run", labels_per_class=0, devices=1)
    assert list(scores) == ["r", "raw pixels", "untrained encoder"]
    assert scores["raw pixels"].top1 == 1
    encoder = dcjax.load_encoder(tmp_path / "run")
    images = np.stack([Stripes("test")[i][0] for i in range(3)])
    assert encoder.encode(images).shape == (3, 12)


def test_a_loss_without_tiles_takes_auto_and_none(own_parts):
    mesh = make_mesh(1)
    z = jax.random.normal(jax.random.key(0), (2, 16, 4))
    for block_size in ("auto", "none"):
        own_parts.loss.block_size = block_size
        assert jnp.isfinite(make_loss(own_parts, mesh)(*z))
    own_parts.loss.block_size = "8"
    with pytest.raises(SettingError, match=r"loss\.block_size must be auto or none for the loss 'mine', found 8"):
        make_loss(own_parts, mesh)


def test_a_setting_that_an_encoder_does_not_have_is_refused(tmp_path, own_parts):
    own_parts.model.width = 0.5
    with pytest.raises(SettingError, match=r"^model\.width has no meaning for the encoder 'mine', found 0.5"):
        pretrain(own_parts, tmp_path / "run")


def test_a_name_that_is_in_no_table_lists_the_additions(tmp_path, own_parts):
    for section in ("loss", "projector", "model", "data"):
        config = own_parts.copy_and_resolve_references()
        config[section].name = "yours"
        with pytest.raises(SettingError, match=rf"^{section}\.name 'yours' is not known.*mine"):
            pretrain(config, tmp_path / "run")
