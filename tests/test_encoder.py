"""A trained encoder without its data set."""

import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers import ROOT, new_process, tiny_config, write_images

import dcjax
from dcjax.components import load_run
from dcjax.config import read_config
from dcjax.pretrain import pretrain
from dcjax.runtime.errors import SettingError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps on the digits, with checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    pretrain(tiny_config(), folder)
    return folder


def test_representations_are_those_of_the_probe(run):
    components, variables, step = load_run(run, devices=1)
    source = components.test_source
    expected = components.features(variables, source).r[: len(source)]
    images = np.stack([source[i][0] for i in range(len(source))])
    encoder = dcjax.load_encoder(run)
    assert encoder.step == step
    assert repr(encoder) == f"Encoder(one_block, r of 32 entries, {step} steps with the projector 'direct')"
    assert encoder.config == read_config(run)
    found = encoder.encode(images, batch_size=64)
    assert found.dtype == np.float32
    # The same float32 sums; another batch may be summed in another order, by some roundings of the largest entry.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())
    np.testing.assert_allclose(encoder.encode(images[:3] / np.float32(255)), found[:3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(list(images[:3])), found[:3], rtol=1e-4, atol=1e-5)


def test_images_of_any_size(tmp_path):
    """A folder of photographs of many sizes: cropped as the probe crops its test images."""
    for i, label in enumerate("ab"):
        write_images(tmp_path / "data" / "train" / label, 8, size=12 + i)
        write_images(tmp_path / "data" / "test" / label, 2, size=20 + 5 * i, seed=1)
    settings = {"data__name": "folder", "data__dir": str(tmp_path / "data"), "data__stored_size": 0, "batch_size": 8}
    pretrain(tiny_config(**settings, total_steps=1), tmp_path / "run")
    components, variables, _ = load_run(tmp_path / "run", devices=1)
    source = components.test_source
    expected, images = components.features(variables, source).r[:4], [source[i][0] for i in range(4)]
    assert {image.shape[0] for image in images} == {20, 25}
    shutil.rmtree(tmp_path / "data")  # the encoder does without
    encoder = dcjax.load_encoder(tmp_path / "run")
    np.testing.assert_allclose(encoder.encode(images), expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert encoder.encode([]).shape == (0, 32)


def test_other_sizes_are_fitted_to_the_stored_one(run):
    encoder = dcjax.load_encoder(run)
    rng = np.random.default_rng(0)
    wide = rng.integers(256, size=(16, 24, 3), dtype=np.uint8)
    square = cv2.resize(np.ascontiguousarray(wide[:, 4:20]), (8, 8), interpolation=cv2.INTER_AREA)
    r = encoder.encode([wide, square])
    assert r.shape == (2, 32)
    # Both are 8 x 8 versions of one square; a wrong crop or channel order would not come near.
    assert np.corrcoef(r)[0, 1] > 0.9


def test_a_step_can_be_chosen(run):
    early, last = dcjax.load_encoder(run / "checkpoints" / "2"), dcjax.load_encoder(run)
    assert (early.step, last.step) == (2, 4)
    images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    assert np.abs(early.encode(images) - last.encode(images)).max() > 1e-4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"images must be \[n, h, w, 3\].*\(8, 8, 3\)"),
        (np.zeros((1, 8, 8, 1), np.uint8), r"images must be \[h, w, 3\], found the shape \(8, 8, 1\)"),
        (np.zeros((1, 8, 8, 3), np.int64), "uint8 or floats in.*found int64"),
        (np.full((1, 8, 8, 3), 255.0), "floats must lie in.*found 255 to 255"),
        (np.full((1, 8, 8, 3), np.nan), "floats must lie in.*found nan"),
        ([np.zeros((0, 8, 3), np.uint8)], r"found the shape \(0, 8, 3\)"),
        (None, r"or a sequence of \[h, w, 3\], found NoneType"),
    ],
)
def test_images_that_cannot_be_encoded(run, images, message):
    with pytest.raises(ValueError, match=message) as error:
        dcjax.load_encoder(run).encode(images)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, found 0"):
        dcjax.load_encoder(run).encode(np.zeros((1, 8, 8, 3), np.uint8), batch_size=0)


def test_folders_without_a_whole_encoder(run, tmp_path, capsys):
    for folder, message in (
        (tmp_path / "nowhere", "nowhere is no folder"),
        (run / "checkpoints" / "3", "holds no complete checkpoint of step 3; it has 2, 4"),
    ):
        with pytest.raises(SettingError, match=message) as error:
            dcjax.load_encoder(folder)
        assert "\n" not in str(error.value)
    shutil.copytree(run, tmp_path / "damaged")
    for file in (tmp_path / "damaged" / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.raises(SettingError, match=r"checkpoints/4 is damaged: state/\S+ has 7 bytes instead of"):
        dcjax.load_encoder(tmp_path / "damaged" / "checkpoints" / "4")
    assert dcjax.load_encoder(tmp_path / "damaged").step == 2
    assert "checkpoint 4 is damaged" in capsys.readouterr().err


def test_submodules_are_loaded_when_they_are_used():
    code = (
        "import sys, dcjax\n"
        "assert not {'jax', 'numpy', 'ml_collections'} & set(sys.modules)\n"
        "assert dcjax.losses.info_nce and dcjax.collapse.spectrum and dcjax.SettingError\n"
        "assert 'matplotlib' not in sys.modules and 'tensorflow_datasets' not in sys.modules\n"
        "assert 'load_encoder' in dir(dcjax) and dcjax.load_encoder.__module__ == 'dcjax.encoder'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=new_process(1), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dcjax.nonsense  # noqa: B018


def test_few_images_are_encoded_in_a_small_batch(run, monkeypatch):
    encoder = dcjax.load_encoder(run)
    compiled, sizes = encoder._compiled, []
    monkeypatch.setitem(vars(encoder), "_compiled", lambda v, images: sizes.append(len(images)) or compiled(v, images))
    images = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
    together = encoder.encode(images, batch_size=4)
    alone = np.concatenate([encoder.encode(images[i : i + 1]) for i in range(5)])
    assert sizes == [4, 4, 1, 1, 1, 1, 1]
    # Other batches may sum in another order, by some roundings of the largest entry.
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5 * together.max())


def test_a_run_in_a_folder_that_is_named_like_a_checkpoint(run, tmp_path):
    shutil.copytree(run, tmp_path / "checkpoints" / "42")
    assert dcjax.load_encoder(tmp_path / "checkpoints" / "42").step == 4
