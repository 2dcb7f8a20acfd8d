"""Images that cannot be read or decoded: what stands in for them, and when a run stops."""

import itertools

import numpy as np
import pytest
from numbered import Numbered, equal, evaluate, indices, loader

from dcjax.data import FixedSizeImages, Subset, TolerantSource
from dcjax.data.decode import DamagedImageError
from dcjax.runtime.errors import SettingError


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch_size", [8, 256])
@pytest.mark.parametrize("stored_size", [0, 4])
def test_an_image_that_cannot_be_read(threads, batch_size, stored_size):
    source = Numbered(256)
    expected = list(itertools.islice(loader(source, batch_size, stored_size=stored_size), 256 // batch_size))
    source = Numbered(256)
    bad = int(indices(expected[-1])[-1])
    source.broken = {bad}
    reader = loader(source, batch_size, stored_size=stored_size, threads=threads)
    for batch in expected[:-1]:
        equal(next(reader), batch)
    for _ in range(2):  # and again when asked again
        with pytest.raises(SettingError) as caught:
            next(reader)
        assert str(caught.value) == f"numbered image {bad}: not an image"  # itself, not wrapped in Grain's words
        assert reader.step == len(expected) - 1
    source.broken = set()
    equal(next(reader), expected[-1])  # nothing was skipped
    source = Numbered(256)
    source.broken = {bad}
    with pytest.raises(SettingError, match=f"^numbered image {bad}: not an image"):
        evaluate(source, batch_size, stored_size, threads=threads)


class Damaged(Numbered):
    """Some images do not decode."""

    def __getitem__(self, i):
        if i in self.broken:
            raise DamagedImageError(f"{self.image_name(i)}: damaged")
        return super().__getitem__(i)


@pytest.mark.parametrize("stored_size", [0, 4])
def test_the_next_image_stands_in_for_a_damaged_one(stored_size, caplog):
    def tolerant(source, max_damaged=0.05):
        source = TolerantSource(source, max_damaged)
        return FixedSizeImages(source, stored_size) if stored_size else source

    def damaged(broken):
        source = Damaged(64)
        source.broken = broken
        return source

    source = tolerant(damaged({5, 6, 63}))
    whole, mended = (
        list(itertools.islice(loader(s, 16, stored_size=stored_size), 8)) for s in (tolerant(Damaged(64)), source)
    )
    stands_in = np.arange(64)
    stands_in[[5, 6, 63]] = 7, 7, 0
    for a, b in zip(whole, mended, strict=True):
        np.testing.assert_array_equal(indices(b), stands_in[indices(a)])
        np.testing.assert_array_equal(b["label"], indices(b) % 2)
        np.testing.assert_array_equal(b["position"], a["position"])
    evaluated = np.concatenate([indices(b) for b in evaluate(source, 16, stored_size)])
    np.testing.assert_array_equal(evaluated, stands_in)
    # Two epochs and an evaluation: each is named once.
    expected = {f"damaged image: numbered image {i}: damaged" for i in (5, 6, 63)}
    # Of a subset as of the whole, with the whole's tolerance.
    part = Subset(source, np.array([40, 6, 9]))
    evaluated = np.concatenate([indices(b) for b in evaluate(part, 3, stored_size)])
    np.testing.assert_array_equal(evaluated, [40, 7, 9])
    assert len(caplog.records) == 3
    assert {record.getMessage() for record in caplog.records} == expected
    message = r"^max_damaged = 0.05: 4 of the 64 images cannot be decoded: numbered image 5: damaged, numbered image 6"
    with pytest.raises(ValueError, match=message):
        evaluate(tolerant(damaged({5, 6, 7, 63})), 16, stored_size)
    with pytest.raises(ValueError, match=r"^max_damaged = 0: 1 of the 64 images cannot .*: numbered image 9: damaged"):
        evaluate(tolerant(damaged({9}), max_damaged=0), 16, stored_size)
    with pytest.raises(DamagedImageError, match=r"^numbered image 9: damaged"):  # nothing tolerates it
        evaluate(damaged({9}), 16, stored_size)


@pytest.mark.parametrize("max_damaged", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none(max_damaged):
    with pytest.raises(ValueError, match=rf"^max_damaged must be a share from 0 to below 1, found {max_damaged}"):
        TolerantSource(Numbered(4), max_damaged)


def test_a_source_without_a_readable_image_ends():
    source = Damaged(4)
    source.broken = {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"^max_damaged = 0\.99: 4 of the 4 images"):
        TolerantSource(source, 0.99)[2]
