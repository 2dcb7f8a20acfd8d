"""The loader: which image is where in the stream, for any number of processes; images that cannot be read."""

import gc
import itertools
import math
import pathlib
import subprocess
import sys
import time
import weakref

import cv2
import numpy as np
import pytest
from numbered import Numbered, equal, evaluate, indices, loader, stream
from scipy import stats

from dcjax.data import FixedSizeImages, Subset, crops, eval_batches, open_source
from dcjax.data.order import epoch_order

ROOT = pathlib.Path(__file__).parents[2]


def test_batch_of_whole_images():
    batch = next(loader(Numbered(40), 8))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((8, 4, 4, 3), np.uint8),
        "label": ((8,), np.int32),
        "position": ((8,), np.uint32),
    }
    np.testing.assert_array_equal(batch["position"], np.arange(8))
    np.testing.assert_array_equal(batch["label"], indices(batch) % 2)


@pytest.mark.parametrize(("views", "shape"), [(1, (8, 3, 3, 3)), (2, (8, 2, 3, 3, 3))])
def test_batch_of_crops(views, shape):
    batch = next(loader(Numbered(40, sides={3: 7, 4: 12}), 8, stored_size=0, views=views))
    assert batch["image"].shape == shape
    np.testing.assert_array_equal(batch["label"], indices(batch) % 2)


@pytest.mark.parametrize("views", [1, 2])
def test_crops_follow_seed_and_position(views):
    source = open_source("digits", dir="", dataset="", split="test")
    draw = {"scale": (0.2, 1.0), "ratio": (0.75, 1.33), "interpolation": "bilinear"}
    batch = next(loader(source, 16, seed=5, stored_size=0, views=views, size=6, **draw))
    order = stream(Numbered(len(source)), 1, 16, seed=5)  # the order depends on the seed and the length alone
    for j, i in enumerate(order):
        expected = np.empty((views, 6, 6, 3), np.uint8)
        crops.random_crops(source[i][0], expected, seed=5, position=j, **draw)
        np.testing.assert_array_equal(batch["image"][j].reshape(expected.shape), expected)


def test_every_image_once_per_epoch_in_a_new_order():
    # 5 does not divide 23: batches reach across the ends of epochs.
    epochs = stream(Numbered(23), 23 * 4 // 5, 5)[: 23 * 3].reshape(3, 23)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(23))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_uniformly_random():
    """Where nearby places of one epoch, or the same places of two, went together, batches would not be random draws."""
    count = 50_000
    one, two = (epoch_order(count, 0, epoch).astype(float) for epoch in (0, 1))
    np.testing.assert_array_equal(np.sort(one), np.arange(count))
    for a, b in ((one[:-1], one[1:]), (one, two), (one, np.arange(count))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(count)
    steps = np.diff(one) / count  # of a random order: a triangular distribution
    assert stats.kstest(steps[::2], stats.triang(0.5, loc=-1, scale=2).cdf).pvalue > 1e-3
    # Images sorted by class, ten classes: their numbers in a batch are a random draw's, not more even.
    classes = (one[: 195 * 256] * 10 // count).astype(int).reshape(195, 256)
    counts = np.stack([np.bincount(batch, minlength=10) for batch in classes])
    spread = np.sum((counts - 25.6) ** 2 / 25.6) / (195 * 9)
    assert abs(spread - 1) < 4 * math.sqrt(2 / (195 * 9))


def test_order_follows_the_seed():
    source = Numbered(50)
    first = stream(source, 10, 10, seed=0)
    np.testing.assert_array_equal(first, stream(source, 10, 10, seed=0, threads=1))
    other = stream(source, 10, 10, seed=1)
    assert (first[:50] != other[:50]).any()
    # The next seed is another stream, not the same stream one epoch later.
    assert (first[50:] != other[:50]).any()


@pytest.mark.parametrize("count", [23, 64])
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("stored_size", [0, 4])
def test_processes_share_each_batch(count, processes, stored_size):
    source = Numbered(count)
    whole = loader(source, 16, stored_size=stored_size)
    parts = [
        loader(source, 16, stored_size=stored_size, process_index=p, process_count=processes) for p in range(processes)
    ]
    for k in range(6):
        expected = next(whole)
        np.testing.assert_array_equal(expected["position"], np.arange(16 * k, 16 * (k + 1)))
        shares = [next(part) for part in parts]
        assert all(len(share["label"]) == 16 // processes for share in shares)
        joined = {key: np.concatenate([share[key] for share in shares]) for key in expected}
        order = np.argsort(joined["position"])
        equal({key: value[order] for key, value in joined.items()}, expected)


@pytest.mark.parametrize("batch_size", [10, 256])  # one chunk, and several chunks a batch
@pytest.mark.parametrize("process_count", [1, 2])
def test_seek(batch_size, process_count):
    options = {"stored_size": 0, "process_count": process_count, "process_index": process_count - 1}
    source = Numbered(300)
    reader = loader(source, batch_size, **options)
    assert iter(reader) is reader
    batches = [next(reader) for _ in range(6)]
    assert reader.step == 6
    for step in (3, 0, 5):
        reader.seek(step)
        assert reader.step == step
        equal(next(reader), batches[step])
        fresh = loader(source, batch_size, **options)
        fresh.seek(step)
        equal(next(fresh), batches[step])
    assert reader.step == 6


def test_seek_while_threads_read_ahead():
    source = Numbered(500)
    batches = list(itertools.islice(loader(source, 128, stored_size=0, threads=0), 8))
    reader = loader(source, 128, stored_size=0, threads=6, prefetch=4)
    for step in np.random.default_rng(0).integers(0, 7, 30).tolist():
        reader.seek(step)
        first, second = next(reader), next(reader)
        equal(first, batches[step])
        equal(second, batches[step + 1])


def test_seek_continues_under_other_processes():
    source = Numbered(40)
    whole = loader(source, 8)
    whole.seek(7)
    parts = [loader(source, 8, process_index=p, process_count=2) for p in range(2)]
    for part in parts:
        part.seek(7)
    joined = np.stack([indices(next(part)) for part in parts], axis=1).reshape(-1)
    np.testing.assert_array_equal(joined, indices(next(whole)))


def test_positions_of_a_long_run():
    reader = loader(Numbered(1000), 1000)
    reader.seek(2**32 // 1000 + 1)  # past uint32: the position wraps, the stream goes on
    batch = next(reader)
    np.testing.assert_array_equal(batch["position"], (2**32 // 1000 + 1) * 1000 - 2**32 + np.arange(1000))
    np.testing.assert_array_equal(np.sort(indices(batch)), np.arange(1000))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (3, 8), (7, 1)])
def test_small_sources_and_batches(count, batch_size):
    seen = stream(Numbered(count), count, batch_size)
    np.testing.assert_array_equal(np.bincount(seen, minlength=count), batch_size)


def test_threads_none_and_many():
    source = Numbered(50)
    with_threads = stream(source, 8, 12, threads=8, prefetch=3)
    np.testing.assert_array_equal(stream(source, 8, 12, threads=0, prefetch=0), with_threads)


def test_fixed_size_images_are_decoded_once():
    files = Numbered(40)
    source = FixedSizeImages(files, 4)
    stream(source, 20, 20)
    evaluate(source, 16)
    # Two threads may meet at an image that neither has yet; after that nothing is read again.
    reads = files.reads.copy()
    assert reads.min() >= 1
    stream(source, 20, 20, seed=3)
    evaluate(source, 16)
    evaluate(Subset(source, np.arange(0, 40, 3)), 16)
    assert source[7][1] == 1
    np.testing.assert_array_equal(files.reads, reads)


def test_kept_images_go_with_their_source():
    source = FixedSizeImages(Numbered(40), 4)
    evaluate(source, 16)
    kept = weakref.ref(source)
    del source
    deadline = time.monotonic() + 300
    while kept() is not None and time.monotonic() < deadline:  # a reader thread lets go of its last task a little later
        gc.collect()
        time.sleep(0.01)
    assert kept() is None


def test_large_sources_are_not_kept(monkeypatch):
    monkeypatch.setattr("dcjax.data.fixed_size.KEEP_BYTES", 100)
    files = Numbered(8)
    source = FixedSizeImages(files, 4)
    np.testing.assert_array_equal(np.concatenate([indices(b) for b in evaluate(source, 4)]), np.arange(8))
    evaluate(source, 4)
    np.testing.assert_array_equal(files.reads, 2)


@pytest.mark.parametrize("count", [8, 9])  # kept, and too many to be
def test_many_images_at_once(monkeypatch, count):
    monkeypatch.setattr("dcjax.data.fixed_size.KEEP_BYTES", 8 * 4 * 4 * 3)
    source = FixedSizeImages(Numbered(count), 4)
    images, labels = source.read_many(np.array([5, 0, 5]))
    assert (images.shape, images.dtype, labels.dtype) == ((3, 4, 4, 3), np.uint8, np.int32)
    np.testing.assert_array_equal(images[:, 0, 0, 1], [5, 0, 5])
    np.testing.assert_array_equal(labels, [1, 0, 1])
    assert (len(source), source.classes, source.image_name(3)) == (count, ("even", "odd"), "numbered image 3")


@pytest.mark.parametrize("stored_size", [0, 4])
@pytest.mark.parametrize(("count", "batch_size"), [(16, 8), (17, 8), (3, 8), (300, 256)])
def test_eval_takes_every_image_once(count, batch_size, stored_size):
    source = Numbered(count)
    batches = evaluate(source, batch_size, stored_size)
    assert len(batches) == -(-count // batch_size)
    side = stored_size or 3
    for batch in batches:
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "image": ((batch_size, side, side, 3), np.uint8),
            "label": ((batch_size,), np.int32),
            "index": ((batch_size,), np.int64),
            "mask": ((batch_size,), bool),
        }
        masked = ~batch["mask"]
        assert not batch["image"][masked].any()
        assert (batch["label"][masked] == -1).all()
        assert (batch["index"][masked] == -1).all()
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    np.testing.assert_array_equal(joined["mask"], np.arange(len(joined["mask"])) < count)
    np.testing.assert_array_equal(joined["index"][:count], np.arange(count))
    np.testing.assert_array_equal(indices(joined)[:count], np.arange(count))
    np.testing.assert_array_equal(joined["label"][:count], np.arange(count) % 2)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("count", [3, 17, 32])
def test_eval_is_balanced_over_processes(count, processes):
    source = Numbered(count)
    whole = evaluate(source, 8)
    parts = [evaluate(source, 8, process_index=p, process_count=processes) for p in range(processes)]
    assert {len(part) for part in parts} == {len(whole)}
    for k, expected in enumerate(whole):
        equal({key: np.concatenate([part[k][key] for part in parts]) for key in expected}, expected)


def test_eval_can_be_left_early():
    batches = eval_batches(Numbered(100), batch_size=10, size=3, stored_size=4, interpolation="bilinear", threads=2)
    assert next(batches)["mask"].all()
    batches.close()


@pytest.mark.parametrize("make", [loader, evaluate])
@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "batch_size = 0"),
    ({"batch_size": -4}, "batch_size = -4"),
    ({"batch_size": 10, "process_count": 4}, "batch_size = 10.* 4"),
])  # fmt: skip
def test_batch_size_mistakes(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(Numbered(20), **options)


def test_an_image_of_another_size():
    source = Numbered(20, sides={13: 5})
    message = r"^stored_size = 4: every image must be 4 x 4, but numbered image 13 is 5 x 5; set it to 0 where"
    with pytest.raises(ValueError, match=message):
        stream(source, 5, 4)
    with pytest.raises(ValueError, match=message):
        evaluate(source, 4)
    with pytest.raises(ValueError, match=r"^stored_size = 5: .* a side of 4"):
        evaluate(Subset(FixedSizeImages(source, 4), np.arange(3)), 4, stored_size=5)


def test_closing_stops_reading():
    reader = loader(Numbered(100), 10)
    next(reader)
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        next(reader)


def test_a_loader_turns_opencvs_own_threads_off_and_the_import_does_not():
    code = """
import cv2
before = cv2.getNumThreads()
cv2.setNumThreads(before + 2)
import dcjax.data, dcjax.data.prepare
assert cv2.getNumThreads() == before + 2, cv2.getNumThreads()
source = dcjax.data.open_source("digits", dir="", dataset="", split="test")
reading = {"batch_size": 4, "size": 4, "stored_size": 0, "interpolation": "bilinear", "threads": 1}
next(dcjax.data.eval_batches(source, **reading))
assert cv2.getNumThreads() == 1, cv2.getNumThreads()
cv2.setNumThreads(3)
crops = {"scale": (0.2, 1.0), "ratio": (0.75, 1.33), "views": 1}
next(dcjax.data.train_loader(source, **reading, **crops, seed=0, prefetch=1))
assert cv2.getNumThreads() == 1, cv2.getNumThreads()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_image_files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "train" / f"class{i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8))
    source = open_source("folder", dir=str(tmp_path), dataset="", split="train")
    batch = next(loader(source, 12, stored_size=0, size=16))
    assert batch["image"].shape == (12, 2, 16, 16, 3)
    assert sorted(batch["label"]) == [0] * 4 + [1] * 4 + [2] * 4
    (tested,) = evaluate(source, 12, stored_size=0, size=16)
    np.testing.assert_array_equal(tested["label"], [source[i][1] for i in range(len(source))])
    np.testing.assert_array_equal(tested["image"][5], crops.center_crop(source[5][0], 16, interpolation="bilinear"))
