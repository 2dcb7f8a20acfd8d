"""Whole small files of every format that the package reads, for the fuzzer and its tests."""

import io
import json
import pathlib
import pickle
import struct
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from dcjax.training.manifest import write_manifest

CHECKPOINT_FILES = ("4/manifest.json", "4/position/metadata", "4/config/metadata", "4/state/d/0")
RUN_FILES = ("config.json", "metrics.jsonl", "spectra.jsonl", "probe.json", "command.json", "spectrum.npz", "plan.json")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def seed_files(marker: pathlib.Path) -> dict[str, list[bytes]]:
    """Name of a format (a suffix, or a file of a run) to whole files of it."""
    return {**image_files(), **table_files(str(marker)), **run_files(), **checkpoint_files()}


def image_files() -> dict[str, list[bytes]]:
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (19, 23, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"

    def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
        file = io.BytesIO()
        noise.convert(mode).save(file, kind, **options)
        return file.getvalue()

    jpegs = [{}, {"exif": exif}, {"progressive": True}, {"comment": b"text", "icc_profile": bytes(300)}]
    found = {
        "jpg": [saved("JPEG", **options) for options in jpegs] + [saved("JPEG", mode) for mode in ("L", "CMYK")],
        "png": [saved("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "1", "I;16")] + [saved("PNG", exif=exif)],
        "bmp": [saved("BMP", mode) for mode in ("RGB", "L", "P", "1")],
        "webp": [saved("WEBP"), saved("WEBP", lossless=True), saved("WEBP", "RGBA", exif=exif)],
    }
    found["bmp"].append(run_length_bmp())
    frames = {"save_all": True, "append_images": [noise.rotate(90)]}
    return found | {"png": [*found["png"], saved("PNG", **frames)], "webp": [*found["webp"], saved("WEBP", **frames)]}


def run_length_bmp() -> bytes:
    """A BMP of 8 x 4 pixels in runs, with a step that leaves pixels out."""
    pixels = b"\x08\x01\x00\x00\x04\x02\x00\x02\x02\x01\x02\x03\x00\x00\x00\x01"
    palette = bytes(range(64))
    info = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, len(pixels), 0, 0, 16, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + 64 + len(pixels), 0, 0, 54 + 64) + info + palette + pixels


def table_files(marker: str) -> dict[str, list[bytes]]:
    z = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    trap = np.array([Trap(marker)] * 3, object)

    def written(save: Callable[..., object], *arrays: np.ndarray, **named: np.ndarray) -> bytes:
        file = io.BytesIO()
        save(file, *arrays, **named)
        return file.getvalue()

    arrays = (z, np.asfortranarray(z), np.arange(9), np.array(["a", "bc"]), trap)
    header = json.dumps({"z": {"dtype": "F32", "shape": [13, 5], "data_offsets": [0, 260]}}).encode()
    files = {
        "npy": [*(written(np.save, array) for array in arrays), pickle.dumps(trap)],
        "npz": [written(save, z=z, labels=np.arange(13)) for save in (np.savez, np.savez_compressed)]
        + [written(np.savez_compressed, np.asfortranarray(z)), written(np.savez, trap)],
        "safetensors": [struct.pack("<Q", len(header)) + header + z.tobytes()],
        "csv": [b"\n".join(b",".join(b"%.3f" % x for x in row) for row in z.tolist()), b"label\ncat\ndog\n", b"1\n2\n"],
        "txt": [b"1\n2\n3\n", b"cat\ndog\n"],
    }
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return files
    tables = [{"z": list(z)}, {f"f{i}": column for i, column in enumerate(z.T)}, {"label": np.arange(13)}]
    sinks = [(pa.BufferOutputStream(), pa.table(table)) for table in tables]
    for sink, table in sinks:
        pq.write_table(table, sink)
    return files | {"parquet": [sink.getvalue().to_pybytes() for sink, _ in sinks]}


def run_files() -> dict[str, list[bytes]]:
    sys.path.append(str(pathlib.Path(__file__).parent.parent / "report"))
    from report_runs import write_run

    with tempfile.TemporaryDirectory() as folder:
        run = write_run(pathlib.Path(folder, "run"), lines=4, looks=3, dims=(8, 4), seed=1, dead=2)
        (run / "plan.json").write_text(json.dumps({"images": {"train": "0"}, "shards": [], "dcjax_resize": 320}))
        found = {name: [(run / name).read_bytes()] for name in RUN_FILES}
    file = io.BytesIO()
    np.savez_compressed(file, r_unit=np.ones(8), z_unit=np.ones(4))
    return found | {"spectrum.npz": [*found["spectrum.npz"], file.getvalue()]}


def checkpoint_files() -> dict[str, list[bytes]]:
    contents = {
        "position/metadata": json.dumps({"step": 4, "seed": 1, "unlogged": {"steps": 2, "loss": 1.5}}).encode(),
        "config/metadata": json.dumps({"seed": 1, "model": {"name": "resnet18", "width": 8}}).encode(),
        "state/d/0": bytes(range(200)),
    }
    with tempfile.TemporaryDirectory() as folder:
        step = pathlib.Path(folder, "4")
        for name, data in contents.items():
            (step / name).parent.mkdir(parents=True)
            (step / name).write_bytes(data)
        write_manifest(step, step=4, config={"seed": 1})
        return {name: [pathlib.Path(folder, name).read_bytes()] for name in CHECKPOINT_FILES}
