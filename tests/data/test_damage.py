"""Images that cannot be read or decoded: what stands in for them, and when a run stops."""

import itertools

import numpy as np
import pytest
from numbered import Numbered, equal, evaluate, indices, loader

from dcjax.data import Subset
from dcjax.data.sources.base import DamagedImageError
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
    def damaged(broken):
        source = Damaged(64)
        source.broken = broken
        return source

    source = damaged({5, 6, 63})
    settings = {"stored_size": stored_size, "max_damaged": 0.05}
    whole, mended = (list(itertools.islice(loader(s, 16, **settings), 8)) for s in (Damaged(64), source))
    stands_in = np.arange(64)
    stands_in[[5, 6, 63]] = 7, 7, 0
    for a, b in zip(whole, mended, strict=True):
        np.testing.assert_array_equal(indices(b), stands_in[indices(a)])
        np.testing.assert_array_equal(b["label"], indices(b) % 2)
        np.testing.assert_array_equal(b["position"], a["position"])
    evaluated = np.concatenate([indices(b) for b in evaluate(source, 16, stored_size, max_damaged=0.05)])
    np.testing.assert_array_equal(evaluated, stands_in)
    # Two epochs and an evaluation: each is named once.
    expected = {f"damaged image: numbered image {i}: damaged" for i in (5, 6, 63)}
    # Of a subset as of the whole, with the whole's tolerance.
    part = Subset(source, np.array([40, 6, 9]))
    evaluated = np.concatenate([indices(b) for b in evaluate(part, 3, stored_size, max_damaged=0.05)])
    np.testing.assert_array_equal(evaluated, [40, 7, 9])
    assert len(caplog.records) == 3
    assert {record.getMessage() for record in caplog.records} == expected
    message = r"^4 of the 64 images cannot be decoded, more than data.max_damaged = 0.05 allows: numbered image 5: dam"
    with pytest.raises(SettingError, match=message):
        evaluate(damaged({5, 6, 7, 63}), 16, stored_size, max_damaged=0.05)
    with pytest.raises(SettingError, match=r"^1 of the 64 images .* data.max_damaged = 0 allows: numbered image 9"):
        evaluate(damaged({9}), 16, stored_size)
