"""A few of the fuzzer's cases in this process, and that it would notice what is bad."""

import fuzz
import pytest

from dcjax.data.decode import DamagedImageError


def test_whole_files_are_read(tmp_path):
    """Otherwise a reader that refuses everything would pass."""
    fuzzer = fuzz.Fuzzer(tmp_path, 0)
    for kind, files in fuzzer.files.items():
        for data in files[:1]:
            path = fuzzer.write(kind, f"case.{kind}", data)
            outcomes = [fuzz.outcome(reader, path) for reader in fuzz.readers_of(kind, path)]
            assert "read" in outcomes, (kind, outcomes)
            assert set(outcomes) <= {"read", "refused"}
    for kind in ("jpg", "png", "bmp", "webp"):
        for data in fuzzer.files[kind]:
            assert fuzz.outcome(fuzz.read_image, fuzzer.write(kind, f"case.{kind}", data)) == "read"


def test_damaged_files_are_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "PAGES", 1000)
    fuzzer, found = fuzz.Fuzzer(tmp_path, 1), {}
    for number in range(200):
        kind, outcome = fuzzer.run(number)
        assert outcome in ("read", "refused"), (number, kind, outcome)
        found.setdefault(kind, set()).add(outcome)
    assert len(found) == len(fuzzer.files)


def test_a_case_depends_on_the_seed_and_its_number_alone(tmp_path):
    first, second = (fuzz.Fuzzer(tmp_path / name, 3) for name in ("a", "b"))
    for number in (0, 7):
        assert first.make(number)[1].read_bytes() == second.make(number)[1].read_bytes()


@pytest.mark.parametrize(
    ("error", "good"),
    [
        (DamagedImageError("x/case.png: bad"), True),
        (ValueError("case.png: bad"), True),
        (ValueError("case.png\nbad"), False),
        (ValueError("bad"), False),
        (UnicodeDecodeError("utf-8", b"case.png", 0, 1, "case.png"), False),
    ],
)
def test_messages_are_judged(tmp_path, error, good):
    assert fuzz.fits(error, tmp_path / "case.png") is good
