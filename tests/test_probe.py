"""The probe, end to end on a tiny run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config, write_images
from ml_collections import ConfigDict

from dcjax.components import build, load_run
from dcjax.config import read_config
from dcjax.data import open_source
from dcjax.evaluation.baselines import pixels, untrained_variables
from dcjax.evaluation.protocol import chosen_columns, earlier_rows, make_represent, probe
from dcjax.models.conv import conv2d
from dcjax.pretrain import pretrain
from dcjax.probe import PARTS, main
from dcjax.runtime.errors import SettingError
from dcjax.schema import with_values


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps whose config asks for the cached probe, and one that asks for the paper's recipe."""
    folders = {}
    for name, settings in {
        "cached": {},
        "paper": {"probe__cached": False, "probe__epochs": 2, "probe__labels_per_class": 0},
    }.items():
        folders[name] = tmp_path_factory.mktemp("runs") / name
        pretrain(tiny_config(**settings), folders[name])
    return folders


def test_the_table_of_the_quickstart(run, capsys):
    scores = probe(run["cached"], devices=1)
    assert list(scores) == ["r", "r[:16]", "r[16:]", "raw pixels", "untrained encoder"]
    for row in scores.values():
        assert 0 < row.few_label <= 1
        assert 0 < row.top1 <= row.top5 <= 1
        assert 0 < row.knn <= 1
        assert 1 <= row.effective_rank <= 192
    assert scores["raw pixels"].top1 > 0.9  # a logistic regression on 8 x 8 digits
    assert scores["raw pixels"].knn > 0.9
    printed = capsys.readouterr().out
    for words in ("10 labels/class", "all labels", "top-5", "k-NN", "effective rank", "loss:", "spectrum.png", *scores):
        assert words in printed, words
    record = json.loads((run["cached"] / "probe.json").read_text())
    assert record["step"] == 4
    assert record["scores"]["r"]["top1"] == scores["r"].top1
    probe(run["cached"], features="selected", devices=1)  # a part of it, which leaves the other rows
    assert json.loads((run["cached"] / "probe.json").read_text()) == record


def test_the_papers_recipe(run, capsys):
    scores = probe(run["paper"], features="selected", devices=1)
    assert list(scores) == ["r[:16]"]
    assert scores["r[:16]"].best_top1 >= scores["r[:16]"].top1
    assert scores["r[:16]"].few_label is None
    assert "best epoch" in capsys.readouterr().out


def test_the_papers_recipe_scores_the_baselines_on_request(run):
    """By their neighbours alone; raw pixels are computed for nothing else."""
    scores = probe(run["paper"], features="selected", baselines=True, devices=8)
    assert list(scores) == ["r[:16]", "raw pixels", "untrained encoder"]
    assert scores["raw pixels"].top1 is None
    assert scores["raw pixels"].knn > 0.9
    assert scores["r[:16]"].top1 is not None


def test_the_papers_recipe_with_few_labels(run):
    scores = probe(run["paper"], features="rest", labels_per_class=3, devices=1)
    assert 0 < scores["r[16:]"].few_label <= 1
    assert scores["r[16:]"].few_label_std is not None


def test_the_encoder_stays_as_it_was(run, monkeypatch):
    """Neither parameters nor batch statistics change, on disk or in memory, whichever probe is trained."""
    files = {p: p.read_bytes() for p in (run["paper"] / "checkpoints").rglob("*") if p.is_file()}
    before = jax.device_get(load_run(run["paper"], devices=1)[1])
    held = []

    def remember(*args, **kwargs):
        held.append(load_run(*args, **kwargs))
        return held[-1]

    monkeypatch.setattr("dcjax.evaluation.protocol.load_run", remember)
    probe(run["paper"], features="all", devices=1)
    jax.tree.map(np.testing.assert_array_equal, held[0][1], before)
    assert files == {p: p.read_bytes() for p in files}


def test_the_probe_sees_the_representation_of_evaluation_mode(run):
    """With crops of the whole image and no flip, SGD trains on what is tested: r by the running statistics."""
    components, variables, _ = load_run(run["paper"], devices=1)
    whole = dataclasses.replace(components.augmentation, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    components = dataclasses.replace(components, augmentation=whole)
    features = components.features(variables, components.test_source)
    batch = next(components.eval_batches(components.test_source))
    r, labels = make_represent(components, variables)(
        {"image": batch["image"], "label": batch["label"], "position": batch["index"].astype(np.uint32)}
    )
    # float32 sums in another order, around entries of another size than the rest
    np.testing.assert_allclose(r, features.r[: len(r)], rtol=1e-4, atol=1e-5 * features.r.max())
    np.testing.assert_array_equal(labels, features.labels[: len(r)])


def test_probing_leaves_what_a_run_is_writing(run):
    unfinished = run["cached"] / "checkpoints" / "7.orbax-checkpoint-tmp"
    unfinished.mkdir()
    load_run(run["cached"], devices=1)
    assert unfinished.exists()
    unfinished.rmdir()


def test_features_do_not_depend_on_the_batch_or_the_devices(run):
    """Evaluation mode: an image's features are its own; every test image is there once, in order."""
    components, variables, _ = load_run(run["cached"], devices=1)
    source = components.test_source
    features = components.features(variables, source)
    assert features.r.shape == (360, 32)
    expected = [source[i][1] for i in range(360)]
    np.testing.assert_array_equal(features.labels, expected)
    for batch_size, devices in ((360, 1), (7, 1), (512, 8)):  # 7 pads the last batch, 512 is more than there is
        other, variables, _ = load_run(run["cached"], devices=devices)
        other = dataclasses.replace(other, config=with_values(other.config, {"probe.eval_batch_size": batch_size}))
        again = other.features(variables, source)
        assert again.own == 360
        # Other shapes sum some hundred float32 terms in another order: tens of roundings of the largest entry.
        np.testing.assert_allclose(again.r[:360], features.r, rtol=1e-4, atol=1e-5 * features.r.max())
        np.testing.assert_array_equal(again.labels, expected)


def test_features_are_float32_whatever_the_training_was(run, tmp_path):
    """bfloat16 would put a floor of noise under the spectrum."""
    pretrain(tiny_config(total_steps=1, model__dtype="bfloat16"), tmp_path / "half")
    components, variables, _ = load_run(tmp_path / "half", devices=1)
    assert components.network.encoder.dtype == jnp.bfloat16
    wide = dataclasses.replace(components, config=with_values(components.config, {"model.dtype": "float32"}))
    rows = [e.features(variables, e.test_source).r for e in (components, wide)]
    np.testing.assert_array_equal(*rows)


def test_rows_of_another_probe_are_not_kept(tmp_path):
    file = tmp_path / "probe.json"
    asked = {"step": 4, "labels_per_class": 10, "images": ["a", "b"]}
    assert earlier_rows(file, asked) == {}
    for record, kept in (
        (asked | {"scores": {"r": {"top1": 0.5}}}, {"r": {"top1": 0.5}}),
        (asked | {"scores": {"r": {"top1": 0.5}}, "step": 2}, {}),
        (asked | {"scores": {"r": {"top1": 0.5}}, "labels_per_class": 0}, {}),
        (asked | {"scores": {"r": {"top1": 0.5}}, "images": ["a", "c"]}, {}),
        (asked | {"scores": [1]}, {}),
        ([1], {}),
    ):
        file.write_text(json.dumps(record))
        assert earlier_rows(file, asked) == kept


def test_a_run_without_labels_is_probed_on_labelled_images(tmp_path):
    """What was saved decides the shapes of the network, not the data that it is probed on."""
    write_images(tmp_path / "flat", 20)
    pretrain(tiny_config(total_steps=1, data__name="folder", data__dir=str(tmp_path / "flat")), tmp_path / "run")
    for split in ("train", "test"):
        for label in "abc":
            write_images(tmp_path / "labelled" / split / label, 7)
    scores = probe(tmp_path / "run", data_dir=str(tmp_path / "labelled"), labels_per_class=2, features="all", devices=1)
    assert 0 <= scores["r"].few_label <= 1


def test_export(run, tmp_path):
    probe(run["cached"], export=str(tmp_path / "features.npz"), features="all", devices=1)
    arrays = np.load(tmp_path / "features.npz")
    assert {name: arrays[name].shape for name in arrays} == {
        "r": (360, 32), "z": (360, 16), "labels": (360,),
        "train_r": (1437, 32), "train_z": (1437, 16), "train_labels": (1437,),
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["z"], arrays["r"][:, :16])


def test_raw_pixels_are_the_images():
    components = build(tiny_config())
    source = open_source("digits", dir="", dataset="", split="test")
    rows = pixels(components, source).r
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows[3], source[3][0].reshape(-1))


def test_the_untrained_encoders_statistics_are_settled(run, monkeypatch):
    """With one batch of all images, the settled statistics of the first BatchNorm are those of its input."""
    components, _, _ = load_run(run["cached"], devices=1)
    monkeypatch.setattr("dcjax.evaluation.baselines.SETTLE_BATCH", 1437)
    components = dataclasses.replace(components, config=with_values(components.config, {"probe.eval_batch_size": 1437}))
    variables = untrained_variables(components)
    batch = next(components.eval_batches(components.train_source))
    kernel = variables["params"]["encoder"]["conv1"]["kernel"]
    images = components.normalized(jnp.asarray(batch["image"]))
    h = conv2d(images, kernel, strides=(1, 1), padding=((1, 1), (1, 1)))
    found = variables["batch_stats"]["encoder"]["bn1"]
    np.testing.assert_allclose(found["mean"], h.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["var"], h.var((0, 1, 2)), rtol=1e-3)


def test_an_earlier_checkpoint_is_probed_without_changing_the_results(run, capsys):
    workdir = run["cached"]
    folder = workdir / "checkpoints" / "2"
    before = {path.name: path.stat().st_mtime_ns for path in workdir.iterdir()}
    probe(folder, labels_per_class=0, baselines=False, devices=1)
    printed = capsys.readouterr().out
    assert "of step 2 on" in printed
    assert "loss: " in printed
    assert {path.name: path.stat().st_mtime_ns for path in workdir.iterdir()} == before
    assert not (folder / "probe.json").exists()


def test_scores_that_cannot_be_written(run, monkeypatch, capsys):
    """The command ends with an error; after a training it is a warning. The table is printed before."""

    def fail(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dcjax.evaluation.protocol.replace_text", fail)
    with pytest.raises(SettingError, match=r"probe\.json cannot be written \(No space left .*; the scores are"):
        probe(run["cached"], features="selected", labels_per_class=0, devices=1)
    assert "top-1 accuracy" in capsys.readouterr().out
    probe(run["cached"], features="selected", labels_per_class=0, devices=1, must_write=False)
    assert "probe.json cannot be written" in capsys.readouterr().err


def test_bad_input(run, tmp_path):
    with pytest.raises(SettingError, match="holds no checkpoints"):
        probe(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SettingError, match="holds no complete checkpoint"):
        probe(tmp_path)
    with pytest.raises(SettingError, match="labels_per_class must be at least 0, found -1"):
        probe(run["cached"], labels_per_class=-1)
    with pytest.raises(SettingError, match=r"labels_per_class must be at most .* found 1000"):
        probe(run["cached"], labels_per_class=1000)
    with pytest.raises(SettingError, match=r"--export .* cannot be written"):
        probe(run["cached"], features="all", export=str(tmp_path / "no" / "such" / "file.npz"))
    with pytest.raises(SettingError, match=r"--export .* is a folder; name a file"):
        probe(run["cached"], features="all", export=str(tmp_path))
    with pytest.raises(SettingError, match="invalid choice: 'half'"):
        main(["--workdir=x", "--features=half"])
    with pytest.raises(SettingError, match="--workdir"):
        main([])
    assert PARTS == ("all", "selected", "rest")


@pytest.mark.parametrize(
    ("text", "message"), [('{"a": 1}', "lacks seed, batch_size"), ("{", "cannot be read"), ("3", "cannot be read")]
)
def test_a_config_that_is_damaged_is_named(run, text, message):
    file = run["cached"] / "config.json"
    whole = file.read_text()
    file.write_text(text)
    with pytest.raises(SettingError, match=f"config.json {message}"):
        probe(run["cached"])
    file.write_text(whole)


def test_a_config_from_before_a_key_that_may_change_is_read(run, tmp_path):
    values = json.loads((run["cached"] / "config.json").read_text())
    del values["monitor"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path).monitor.every_steps == 500


@pytest.mark.parametrize(
    ("settings", "devices", "message"),
    [
        ({"eval_batch_size": 12}, 8, r"probe\.eval_batch_size must be a multiple of the 8 device.*8 or 16; found 12"),
        ({"batch_size": 20}, 8, r"probe\.batch_size must be a multiple of the 8 device.*16 or 24; found 20"),
        ({"eval_batch_size": -1}, 1, r"probe\.eval_batch_size must be at least 0, found -1"),
    ],
)
def test_batches_are_not_rounded(run, tmp_path, settings, devices, message):
    config = ConfigDict(dataclasses.asdict(read_config(run["paper"])))
    config.probe.update({**settings, "after_training": True})
    config.devices = devices
    with pytest.raises(SettingError, match=message) as error:
        pretrain(config, tmp_path / "run")  # named before anything is trained
    assert "\n" not in str(error.value)


def test_a_source_that_is_smaller_than_a_batch_of_the_recipe():
    for images, devices, expected in ((20, 4, 20), (19, 4, 16), (3, 8, 8), (19, 1, 19)):
        components = build(tiny_config(probe__batch_size=20, devices=devices))
        assert components.sgd_batch_size(images) == expected


def test_parts_that_the_projector_does_not_have():
    with pytest.raises(SettingError, match=r"--features must be all for the projector 'linear'.*found 'selected'"):
        chosen_columns(build(tiny_config(projector__name="linear")), "selected")


def test_one_class_cannot_be_probed(run, tmp_path, monkeypatch):
    for split in ("train", "test"):
        write_images(tmp_path / "data" / split / "only", 12)
    settings = {"total_steps": 1, "batch_size": 8, "data__name": "folder", "data__dir": str(tmp_path / "data")}
    _, variables, step = load_run(run["cached"], devices=1)
    monkeypatch.setattr(
        "dcjax.evaluation.protocol.load_run", lambda *_, **__: (build(tiny_config(**settings)), variables, step)
    )
    with pytest.raises(SettingError, match=r"a probe needs images of two classes or more.*the single class 'only'"):
        probe(run["cached"])
    with pytest.raises(SettingError, match="two classes or more"):  # before training, where the config asks for a probe
        pretrain(tiny_config(**settings, probe__after_training=True), tmp_path / "other")


def test_a_test_set_smaller_than_a_batch_is_scored_whole(tmp_path):
    for split, count in (("train", 40), ("test", 3)):
        for label in "ab":
            write_images(tmp_path / "data" / split / label, count, seed=ord(label))
    settings = {"total_steps": 5, "batch_size": 8, "data__name": "folder", "data__dir": str(tmp_path / "data")}
    pretrain(tiny_config(**settings), tmp_path / "run")
    scores = probe(tmp_path / "run", features="all", labels_per_class=0, devices=1)
    assert scores["r"].top1 * 6 == pytest.approx(round(scores["r"].top1 * 6), abs=1e-5)  # sixths: every image once
