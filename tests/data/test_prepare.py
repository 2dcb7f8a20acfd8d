"""Preparation: class folders become a set that reads back byte by byte, and only whole ones are found."""

import importlib.util
import os
import resource
import signal
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import write_images

from dcjax.data import open_source, prepare
from dcjax.data.sources import tfds as tfds_source
from dcjax.runtime.errors import SettingError


@pytest.fixture
def tree(tmp_path):
    for k, label in enumerate("abc"):
        write_images(tmp_path / "images" / "train" / label, 5 + k, size=32, seed=k)
    write_images(tmp_path / "images" / "val" / "c", 3, size=32)
    return tmp_path / "images"


def opened(top, split="train"):
    return open_source("tfds", dir=str(top), dataset="mine", split=split)


def convert(tree, top, **options):
    return prepare.prepare_folder(str(tree), "mine", data_dir=str(top), **options)


def cut(monkeypatch, shards):
    """Cuts every split into so many files."""

    def plan(source, split, megabytes):
        bounds = [len(source) * k // shards for k in range(shards + 1)]
        return [prepare.Shard(split, k, shards, bounds[k], bounds[k + 1] - bounds[k]) for k in range(shards)]

    monkeypatch.setattr(prepare, "plan_shards", plan)


def test_a_folder_reads_back_as_it_was(tree, tmp_path, monkeypatch):
    cut(monkeypatch, 3)
    top = tmp_path / "sets"
    assert convert(tree, top) == top / "mine" / "1.0.0"
    for split, count in (("train", 18), ("val", 3)):
        source, files = opened(top, split), open_source("folder", dir=str(tree), dataset="", split=split, classes="abc")
        assert len(source) == count
        assert source.classes == ("a", "b", "c")
        for i in range(count):
            (image, label), (expected, expected_label) = source[i], files[i]
            np.testing.assert_array_equal(image, expected)
            assert label == expected_label
    # It is a data set of TFDS, to anyone.
    builder = tfds.builder_from_directory(top / "mine" / "1.0.0")
    record = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})[17]
    assert record["label"] == 2
    assert opened(top).read(17) == (record["image"], 2)
    assert record["image"] == (tree / "train" / "c" / "006.png").read_bytes()
    assert record["file_name"] == b"c/006.png"
    assert (
        opened(top).image_name(17) == "mine/1.0.0 train image 17 (record 5 of mine-train.array_record-00002-of-00003)"
    )
    with pytest.raises(SettingError, match=r"1\.0\.0.*--version"):
        convert(tree, top)
    assert convert(tree, top, version="1.0.1").name == "1.0.1"


def test_files_have_a_size(tree, monkeypatch):
    source = prepare.open_splits(str(tree))["train"]
    assert [shard.count for shard in prepare.plan_shards(source, "train", 1)] == [18]
    monkeypatch.setattr("os.path.getsize", lambda path: 500_000)
    shards = prepare.plan_shards(source, "train", 4)
    assert [(shard.number, shard.of, shard.first, shard.count) for shard in shards] == [
        (0, 3, 0, 6),
        (1, 3, 6, 6),
        (2, 3, 12, 6),
    ]


def test_an_interrupted_preparation_goes_on(tree, tmp_path, monkeypatch, capsys):
    cut(monkeypatch, 3)
    top, whole = tmp_path / "sets", prepare.write_shard
    written = []

    def interrupted(path, source, shard, features, **options):
        if shard.split == "val":
            raise KeyboardInterrupt
        written.append(path.name)
        whole(path, source, shard, features, **options)

    monkeypatch.setattr(prepare, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tree, top)
    with pytest.raises(SettingError, match=r"1\.0\.0\.incomplete"):
        opened(top)
    work = top / "mine" / "1.0.0.incomplete"
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*array_record*")}
    assert set(written) == set(kept) != set()
    (work / written[0]).write_bytes(b"")  # its content was lost with the power
    monkeypatch.setattr(prepare, "write_shard", whole)
    folder = convert(tree, top)
    assert [name for name, time in kept.items() if (folder / name).stat().st_mtime_ns != time] == [written[0]]
    assert not list(folder.glob("*.partial"))
    assert sorted(path.name for path in (top / "mine").iterdir()) == ["1.0.0"]
    assert len(opened(top)) == 18
    assert "anew" not in capsys.readouterr().out


def test_an_interruption_at_the_very_end_loses_nothing(tree, tmp_path, monkeypatch):
    def stop(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare.os, "replace", lambda a, b: stop() if str(b).endswith("1.0.0") else os.rename(a, b))
        with pytest.raises(KeyboardInterrupt):
            convert(tree, tmp_path)
    monkeypatch.setattr(prepare.FolderSource, "read", stop)  # nothing is read again
    convert(tree, tmp_path)
    monkeypatch.undo()
    assert len(opened(tmp_path)) == 18


def test_one_process_at_a_time(tree, tmp_path, monkeypatch):
    whole = prepare.write_info

    def second(*args, **options):
        with pytest.raises(SettingError, match=r"another process.*1\.0\.0\.incomplete"):
            convert(tree, tmp_path)
        whole(*args, **options)

    monkeypatch.setattr(prepare, "write_info", second)
    convert(tree, tmp_path)
    assert len(opened(tmp_path)) == 18


def test_a_file_that_cannot_be_written(tree, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk would
    try:
        with pytest.raises(SettingError, match=r"--data_dir.*mine-train"):
            convert(tree, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    convert(tree, tmp_path)
    assert len(opened(tmp_path)) == 18


def test_more_files_than_a_process_may_open(tree, tmp_path, monkeypatch):
    cut(monkeypatch, 18)
    convert(tree, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        monkeypatch.setattr(tfds_source, "OTHER_FILES", 590)
        opened(tmp_path)
        hard = before[1] if before[1] != resource.RLIM_INFINITY else 65_536
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(65_536, hard)
        monkeypatch.setattr(tfds_source, "OTHER_FILES", before[1])
        with pytest.raises(
            SettingError, match=r"its 18 files stay open .* but a process may open \d+; raise the limit"
        ):
            opened(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_is_no_image_is_named(tree, tmp_path, caplog):
    (tree / "train" / "a" / "note.jpg").write_text("a note")
    convert(tree, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tree / 'train' / 'a' / 'note.jpg'} is no JPEG, PNG, BMP or WebP; it goes in as it is"
    ]


def test_folders_that_cannot_be_read_whole(tree, tmp_path):
    (tree / "train" / "a" / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(SettingError, match=r"--folder.*gone\.jpg"):
        convert(tree, tmp_path)
    (tree / "train" / "a" / "gone.jpg").unlink()
    (convert(tree, tmp_path) / "dataset_info.json").unlink()
    with pytest.raises(SettingError, match=r"'mine'"):
        opened(tmp_path)


def test_other_images_are_another_set(tree, tmp_path):
    convert(tree, tmp_path / "one")
    write_images(tree / "train" / "a", 5, size=32, seed=9)
    convert(tree, tmp_path / "two")
    assert opened(tmp_path / "one").fingerprint != opened(tmp_path / "two").fingerprint


def test_other_images_start_anew(tree, tmp_path, capsys):
    work = tmp_path / "sets" / "mine" / "1.0.0.incomplete"
    work.mkdir(parents=True)
    (work / "plan.json").write_text("of other images")
    convert(tree, tmp_path / "sets")
    assert "begun with other images or shards; starting anew" in capsys.readouterr().out
    assert len(opened(tmp_path / "sets")) == 18


@pytest.mark.parametrize("damage", ["cut", "empty", "lost"])
def test_a_damaged_shard_is_found_at_the_start(tree, tmp_path, damage, monkeypatch):
    cut(monkeypatch, 3)
    shard = convert(tree, tmp_path / "sets") / "mine-train.array_record-00001-of-00003"
    data = shard.read_bytes()
    if damage == "lost":
        shard.unlink()
    else:
        shard.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(
        SettingError, match=r"damaged shards, copy them again, or remove .*: .*00001-of-00003"
    ) as caught:
        opened(tmp_path / "sets")
    assert "\n" not in str(caught.value)
    assert len(opened(tmp_path / "sets", "train[:30%]")) == 5  # lies in the first shard alone


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--folder.*--name.*--dataset"),
        ("--folder=x --dataset=y", "--folder.*--dataset"),
        ("--folder=x", "--folder.*--name"),
        ("--folder=x --name=My-Set", "--name.*'My-Set'"),
        ("--folder=x --name=mine --version=2", "--version.*'2'"),
        ("--folder=x --name=mine --shard_megabytes=0", "--shard_megabytes.*0"),
        ("--folder=/no/such --name=mine", "'/no/such'"),
    ],
)
def test_mistakes(flags, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        prepare.main([*flags.split(), f"--data_dir={tmp_path}"])


def test_images_without_classes(tmp_path):
    write_images(tmp_path / "flat", 3)
    with pytest.raises(SettingError, match=r"'train'.*class"):
        convert(tmp_path / "flat", tmp_path / "sets")


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_sets_of_tfds_need_tensorflow_once():
    with pytest.raises(SettingError, match=r"TensorFlow, which is not installed; once: pip install 'dcjax\[prepare\]'"):
        prepare.main(["--dataset=imagenet2012"])


def test_imagenets_archives(tmp_path):
    """The recipe of tensorflow-datasets itself, from archives like ImageNet's with a few images."""
    pytest.importorskip("tensorflow")
    archives, images = tmp_path / "archives", tmp_path / "images"
    archives.mkdir()
    for k, label in enumerate(("n01440764", "n15075141")):  # the first and the last class
        write_images(images / label, 3, size=32, seed=k)
    with tarfile.open(archives / "ILSVRC2012_img_train.tar", "w") as train:
        for folder in sorted(images.iterdir()):
            with tarfile.open(tmp_path / f"{folder.name}.tar", "w") as tar:
                for file in folder.iterdir():
                    tar.add(file, f"{folder.name}_{file.stem}.JPEG")  # a PNG by another name, as one of ImageNet's
            train.add(tmp_path / f"{folder.name}.tar", f"{folder.name}.tar")
    with tarfile.open(archives / "ILSVRC2012_img_val.tar", "w") as val:
        val.add(images / "n01440764" / "000.png", "ILSVRC2012_val_00000001.JPEG")
    top = str(tmp_path / "sets")
    prepare.main(["--dataset=imagenet2012", f"--manual_dir={archives}", f"--data_dir={top}"])
    source = open_source("tfds", dir=top, dataset="imagenet2012", split="train")
    assert len(source.classes) == 1000
    assert sorted(source[i][1] for i in range(len(source))) == [0, 0, 0, 999, 999, 999]
    assert source[0][0].shape == (32, 32, 3)
    assert len(open_source("tfds", dir=top, dataset="imagenet2012", split="val")) == 1
