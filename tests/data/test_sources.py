"""Sources: what they hold, how classes are numbered, and what each mistake says."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dcjax.data import SOURCES, DamagedImageError, eval_batches, open_source, train_loader
from dcjax.data.sources.digits import DigitsSource
from dcjax.data.sources.folder import FolderSource
from dcjax.data.sources.tfds import TFDSSource
from dcjax.runtime.errors import SettingError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def labels_of(source):
    return np.array([source[i][1] for i in range(len(source))])


def solid(color, side=8):
    """An image of one RGB colour."""
    return np.full((side, side, 3), color, np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def write_tfds(
    top, name, splits, *, channels=3, encoding="png", classes=("cat", "dog"), version="1.0.0", image="image"
):
    """Write a small ArrayRecord set with TFDS's own serialiser, which needs no TensorFlow.

    `splits` maps a split to its (image, label) pairs.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import dataset_info, example_serializer, naming

    folder = Path(top) / name / version
    folder.mkdir(parents=True)
    features = {image: tfds.features.Image(shape=(None, None, channels), encoding_format=encoding)}
    if classes:
        features["label"] = tfds.features.ClassLabel(names=list(classes))
    features = tfds.features.FeaturesDict(features)
    identity = dataset_info.DatasetIdentity(
        name=Path(name).parts[0],
        config_name="/".join(Path(name).parts[1:]) or None,
        version=tfds.core.Version(version),
        data_dir=str(folder),
        module_name="tests",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    infos = []
    for split, pairs in splits.items():
        template = naming.ShardedFileTemplate(
            data_dir=folder, dataset_name=identity.name, split=split, filetype_suffix="array_record"
        )
        writer = ArrayRecordWriter(str(folder / f"{identity.name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for pixels, label in pairs:
            encoded = cv2.imencode(f".{encoding}", pixels[..., ::-1])[1].tobytes()
            writer.write(serializer.serialize_example({image: encoded} | ({"label": label} if classes else {})))
        writer.close()
        infos.append(tfds.core.SplitInfo(split, [len(pairs)] if pairs else [], 1, template))
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    top = tmp_path_factory.mktemp("tfds")
    pairs = [(solid((20 * i, 255 - 20 * i, 7)), i % 2) for i in range(10)]
    write_tfds(top, "tiny", {"train": pairs, "validation": pairs[:4], "nothing": []})
    write_tfds(top, "gray", {"train": [(solid((i, i, i))[..., :1], i % 2) for i in range(4)]}, channels=1)
    write_tfds(top, "bare", {"train": pairs[:3]}, classes=(), image="picture")
    write_tfds(top, "two/small", {"train": pairs[:2]})
    write_tfds(top, "two/large", {"train": pairs[:3]})
    write_tfds(top, "one/only", {"train": pairs[:5]})
    write_tfds(top, "many", {"train": pairs[:2]}, version="9.0.0")
    write_tfds(top, "many", {"train": pairs[:3]}, version="10.0.0")
    return str(top)


@pytest.fixture
def tree(tmp_path):
    """An ImageNet-style tree: train has classes a (2 images), b (1, one level deeper), c (2); val has c alone."""
    for i, path in enumerate(["a/2.png", "a/1.PNG", "b/deep/1.bmp", "c/x.JPEG", "c/y.webp"]):
        write(tmp_path / "train" / path, solid((10 * i, 100, 200)))
    write(tmp_path / "val" / "c" / "1.png", solid((9, 9, 9)))
    (tmp_path / "train" / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def raises(match):
    return pytest.raises(ValueError, match=match)


def folder(dir, split="train", classes=()):
    return open_source("folder", dir=str(dir), dataset="", split=split, classes=classes)


def tfds(dir, dataset, split="train"):
    return open_source("tfds", dir=str(dir), dataset=dataset, split=split)


def test_unknown_name_lists_the_known_ones():
    assert list(SOURCES) == ["digits", "folder", "tfds"]
    with raises(r"^name 'diggits' is not known \(did you mean 'digits'\?\); known: digits, folder, tfds"):
        open_source("diggits", dir="", dataset="", split="train")


class Stripes:
    """A source of somebody else's: it takes the one argument of `open_source` that it needs."""

    name, fingerprint, classes = "stripes", "stripes 1", ("rows", "columns")

    def __init__(self, split):
        self.count = {"train": 24, "test": 5}[split]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        image = np.zeros((8, 8, 3), np.uint8)
        image[2 * (i // 2) % 8] = i
        return (image if i % 2 == 0 else image.swapaxes(0, 1)), i % 2

    def image_name(self, i):
        return f"stripes image {i}"


@pytest.mark.parametrize("stored_size", [0, 8])
def test_a_new_source_is_a_class_and_a_row(monkeypatch, stored_size):
    monkeypatch.setitem(SOURCES, "stripes", Stripes)
    train, test = (open_source("stripes", split=split) for split in ("train", "test"))
    options = {"size": 8, "stored_size": stored_size, "interpolation": "bicubic", "threads": 2}
    draw = {"seed": 0, "scale": (1, 1), "ratio": (1, 1), "views": 1, "prefetch": 1}
    loader = train_loader(train, batch_size=6, **options, **draw)
    images = np.concatenate([next(loader)["image"] for _ in range(4)])  # an epoch; the crops are the whole images
    loader.close()
    assert sorted(map(bytes, images)) == sorted(bytes(train[i][0]) for i in range(24))
    batches = list(eval_batches(test, batch_size=4, **options))
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 0, 1], [0, -1, -1, -1]]
    assert batches[1]["mask"].tolist() == [True, False, False, False]


def test_digits():
    from sklearn.datasets import load_digits

    train, test = DigitsSource("train"), DigitsSource("test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.classes == tuple("0123456789")
    assert train.fingerprint != test.fingerprint
    image, label = train[0]
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert isinstance(label, int)
    # Together they are all images of the file, once each, and each class is split four to one.
    values, labels = load_digits(return_X_y=True)
    pixels = np.stack([source[i][0][..., 0] for source in (train, test) for i in range(len(source))])
    expected = np.rint(values.reshape(-1, 8, 8) * 255 / 16)
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, expected.astype(np.uint8)))
    assert np.all(np.abs(np.bincount(labels_of(test)) - np.bincount(labels) / 5) < 1)
    # The split is pinned: a new version of a library must not move an image from one side to the other.
    assert labels_of(test)[:12].tolist() == [0, 2, 4, 7, 1, 6, 8, 9, 5, 3, 0, 2]


def test_digits_split():
    with raises("'validation'.*train, test"):
        DigitsSource("validation")


def test_folder_tree(tree):
    source = folder(tree)
    assert source.classes == ("a", "b", "c")
    assert labels_of(source).tolist() == [0, 0, 1, 2, 2]
    names = [str(Path(source.image_name(i)).relative_to(tree / "train")) for i in range(len(source))]
    assert names == ["a/1.PNG", "a/2.png", "b/deep/1.bmp", "c/x.JPEG", "c/y.webp"]
    image, label = source[1]
    assert (image.shape, image.dtype, label) == ((8, 8, 3), np.uint8, 0)
    assert image[0, 0].tolist() == [0, 100, 200]  # RGB


@pytest.mark.parametrize("split", ["val", "validation"])
def test_folder_classes_are_matched_by_name(tree, split):
    source = folder(tree, split, classes=folder(tree).classes)
    assert source.classes == ("a", "b", "c")
    assert labels_of(source).tolist() == [2]
    assert source[0][1] == 2
    assert labels_of(folder(tree, split)).tolist() == [0]  # by itself the split knows no other class


def test_folder_unknown_class(tree):
    write(tree / "val" / "zebra" / "1.png", solid(0))
    with raises(r"^split = 'val'.*zebra"):
        folder(tree, "val", classes=folder(tree).classes)


def test_folder_without_split_folders(tree):
    source = folder(tree / "train")
    assert source.classes == ("a", "b", "c")
    assert source.fingerprint == folder(tree).fingerprint
    with raises(r"'test'.*dir.*a, b, c"):
        folder(tree / "train", "test")


def test_folder_without_classes(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.jpg", solid(100))
    source = folder(tmp_path)
    assert source.classes == ()
    assert set(labels_of(source)) == {-1}
    assert [source[i][1] for i in range(3)] == [-1, -1, -1]


def test_folder_fingerprint_follows_the_files(tree):
    before = folder(tree).fingerprint
    assert folder(tree).fingerprint == before
    (tree / "train" / "a" / "1.PNG").rename(tree / "train" / "a" / "3.png")
    assert folder(tree).fingerprint != before


def test_folder_that_is_not_there(tmp_path):
    with raises(r"^dir = '.*nowhere'"):
        folder(tmp_path / "nowhere")
    with raises(r"^dir = ''"):
        folder("")


def test_folder_that_is_empty(tmp_path):
    with raises(r"^dir.*\.jpg, \.jpeg, \.png, \.bmp, \.webp"):
        folder(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with raises(r"^dir.*train"):
        folder(tmp_path)


def test_folder_split_that_is_not_there(tree):
    with raises(r"^split = 'test'.*train, val"):
        folder(tree, "test")


def test_class_folder_without_images(tree, caplog):
    (tree / "train" / "empty").mkdir()
    source = folder(tree)
    assert source.classes == ("a", "b", "c", "empty")
    assert "1 of the 4 class folders" in caplog.text
    (tree / "train" / "empty" / "1.tif").write_bytes(b"II*")
    with raises(r"folders empty of .*train"):
        folder(tree)


def test_images_beside_class_folders(tree):
    write(tree / "train" / "stray.png", solid(0))
    with raises(r"stray\.png.*a, b, c"):
        folder(tree)


def test_damaged_and_lost_files(tree):
    source = folder(tree)
    (tree / "train" / "a" / "1.PNG").write_bytes(b"\x89PNG and nothing more")
    (tree / "train" / "a" / "2.png").unlink()
    with pytest.raises(DamagedImageError, match=r"a/1\.PNG"):
        source[0]
    with pytest.raises(SettingError, match=r"^dir: cannot read .*a/2\.png"):
        source[1]


def test_messages_are_one_line(tree, tfds_dir):
    for attempt in (
        lambda: folder(tree, "test"),
        lambda: tfds(tfds_dir, "mnist"),
        lambda: tfds(tfds_dir, "tiny", "test"),
        lambda: tfds(tfds_dir, "no such set!"),
    ):
        with raises(r"^(split|dataset) = ") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_tfds(tfds_dir):
    source = tfds(tfds_dir, "tiny")
    assert len(source) == 10
    assert source.classes == ("cat", "dog")
    image, label = source[3]
    np.testing.assert_array_equal(image, solid((60, 195, 7)))
    assert label == 1
    assert labels_of(source).tolist() == [i % 2 for i in range(10)]
    assert len(tfds(tfds_dir, "tiny", "train[:50%]")) == 5
    assert len(tfds(tfds_dir, "tiny", "val")) == 4
    assert tfds(tfds_dir, "tiny", "validation").fingerprint == tfds(tfds_dir, "tiny", "val").fingerprint
    assert tfds(tfds_dir, "tiny").fingerprint == source.fingerprint != tfds(tfds_dir, "tiny", "val").fingerprint


def test_tfds_gray_becomes_rgb(tfds_dir):
    np.testing.assert_array_equal(tfds(tfds_dir, "gray")[2][0], solid((2, 2, 2)))


def test_tfds_without_labels(tfds_dir):
    source = tfds(tfds_dir, "bare")
    assert (source.classes, source[1][1]) == ((), -1)


def test_tfds_versions_and_configs(tfds_dir):
    assert len(tfds(tfds_dir, "many")) == 3  # 10.0.0 is newer than 9.0.0
    assert len(tfds(tfds_dir, "many:9.0.0")) == 2
    assert len(tfds(tfds_dir, "two/large")) == 3
    assert len(tfds(tfds_dir, "one")) == 5
    with raises(r"'many:8\.0\.0'.*9\.0\.0, 10\.0\.0"):
        tfds(tfds_dir, "many:8.0.0")
    with raises("'two'.*two/large, two/small"):
        tfds(tfds_dir, "two")


def test_tfds_mistakes(tfds_dir, tmp_path):
    with raises(r"'cifar1000'.*bare, gray, .*'cifar100'"):
        tfds(tfds_dir, "cifar1000")
    with raises(r"'tinny'.*'tiny'"):
        tfds(tfds_dir, "tinny")
    with raises(r"^dataset = 'mnist'.*dcjax prepare --dataset=mnist"):
        tfds(tmp_path, "mnist")
    with raises(r"''.*dir"):
        tfds(tfds_dir, "")
    with raises(r"'test'.*tiny.*train"):
        tfds(tfds_dir, "tiny", "test")
    with raises("'nothing'.*tiny"):
        tfds(tfds_dir, "tiny", "nothing")
    with raises(r"'train\[:0\]'.*tiny"):
        tfds(tfds_dir, "tiny", "train[:0]")


def test_tfds_wrong_files(tmp_path):
    pairs = [(solid(1), 0)] * 2
    write_tfds(tmp_path, "old", {"train": pairs})
    info = tmp_path / "old" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with raises(r"'old'.*ArrayRecord"):
        tfds(tmp_path, "old")
    info.write_text("{")
    with raises(r"^dataset = 'old'"):
        tfds(tmp_path, "old")
    write_tfds(tmp_path, "lost", {"train": pairs})
    next((tmp_path / "lost" / "1.0.0").glob("*array_record*")).unlink()
    with raises("lost.*array_record"):
        tfds(tmp_path, "lost")


def test_tfds_default_dir(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    assert len(TFDSSource("", "tiny", "train")) == 10


def test_reading_needs_no_tensorflow(tfds_dir, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemError('TensorFlow is imported')")
    code = f"""
import sys
import dcjax, dcjax.data
loaded = {{"jax", "grain", "tensorflow", "tensorflow_datasets", "sklearn"}} & set(sys.modules)
assert not loaded, loaded
source = dcjax.data.open_source("tfds", dir={tfds_dir!r}, dataset="tiny", split="train")
loader = dcjax.data.train_loader(source, batch_size=4, seed=0, size=4, stored_size=0, scale=(0.2, 1.0),
                                 ratio=(0.75, 1.33), interpolation="bicubic", views=2, threads=2, prefetch=1)
assert next(loader)["image"].shape == (4, 2, 4, 4, 3)
assert sum(source[i][1] for i in range(len(source))) == 5
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
import dcjax.pretrain, dcjax.evaluation.protocol
"""
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)


@pytest.mark.skipif(not (SHARED / "unpack").exists(), reason="the real images are not here")
def test_real_images(tmp_path):
    subprocess.run([sys.executable, str(SHARED / "unpack"), "imagenet_sample", str(tmp_path)], check=True)
    source = folder(tmp_path)
    assert (len(source), len(source.classes)) == (250, 1000)
    image, label = source[7]
    assert image.ndim == 3
    assert source.image_name(7).split("/")[-2] == source.classes[label]


def test_paths_that_are_not_ascii(tmp_path):
    write(tmp_path / "é" / "1.png", solid(3))
    write(tmp_path / "日本" / "2.png", solid(4))
    source = FolderSource(str(tmp_path), "train")
    assert source.classes == ("é", "日本")
    assert [int(source[i][0][0, 0, 0]) for i in range(2)] == [3, 4]
