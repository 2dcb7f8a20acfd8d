"""How preparation with --resize changes the crops, and which kernel and JPEG quality change them least.

    python -m experiments.benchmarks.resize --folder FOLDER

The same crops are made of the files in a folder and of their copies whose shorter side has `--resize` pixels. Only
files that are larger count. A crop box is drawn in the copy, in whole pixels as the loader draws them, and covers the
same part of the file, in fractions of a pixel. Differences are root mean squares in grey levels, over all crops of a
bin of areas (shares of the image); the reference is PIL's antialiased bicubic resize of that part of the file:

- `pil`: PIL's resize of the copy. It shows the copy's loss alone.
- `loader`: the loader's crop of the copy. It adds the loader's own distance from PIL.
- `loader_file`: the loader's crop of the file against PIL's, both with the box in whole pixels of the file. It is what
  training on the files has today.
- `rounding`: PIL's resize of the file with the box in whole pixels, which is up to half a pixel off.
- `loader_both`: the loader's crop of the copy against its crop of the file; the latter's rounding is in it.

The last lines compare other kernels, and other qualities and chroma subsamplings with the kernel that is used: `pil`
again, the bytes, and microseconds of decoding, best of the rounds. JSON lines.
"""

import argparse
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dcjax.data import crops, open_source
from dcjax.data.decode import decode
from dcjax.data.resize import QUALITY, encode, shrink

SIZE = 224
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
BINS = (0.08, 0.2, 0.4, 0.7, 1.0)
SAMPLING = {"4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}
KERNELS = ("lanczos", "bicubic", "bilinear", "area")
ENCODINGS = ((85, "4:4:4"), (90, "4:4:4"), (95, "4:4:4"), (90, "4:2:0"), (95, "4:2:0"))

Pair = tuple[np.ndarray, np.ndarray]  # the file's pixels, the copy's


def _pil(image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """PIL's antialiased bicubic resize of a box `(top, left, h, w)`."""
    top, left, h, w = box
    edges = (left, top, min(left + w, image.shape[1]), min(top + h, image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=edges), np.float32)


def _pil_whole(image: np.ndarray, box: crops.Box) -> np.ndarray:
    """The same of the box alone: no pixel around it takes part, as in the loader."""
    top, left, h, w = box
    return _pil(np.ascontiguousarray(image[top : top + h, left : left + w]), (0, 0, h, w))


def _loader(image: np.ndarray, box: crops.Box) -> np.ndarray:
    return crops.crop_resize(image, box, SIZE, interpolation="bicubic").astype(np.float32)


def _whole(box: tuple[float, float, float, float], image: np.ndarray) -> crops.Box:
    """The nearest box in whole pixels."""
    top, left, h, w = box
    first, start = round(top), round(left)
    return first, start, min(round(top + h), image.shape[0]) - first, min(round(left + w), image.shape[1]) - start


def _differences(file: np.ndarray, copy: np.ndarray, box: crops.Box, all_of_them: bool) -> dict[str, float]:
    """Mean squares of the differences between crops of a box of the copy and of the same part of the file."""
    scales = file.shape[0] / copy.shape[0], file.shape[1] / copy.shape[1]
    place = box[0] * scales[0], box[1] * scales[1], box[2] * scales[0], box[3] * scales[1]
    reference, small = _pil(file, place), _pil_whole(copy, box)
    pairs = {"pil": (small, reference)}
    if all_of_them:
        nearest = _whole(place, file)
        whole, ours, ours_file = _pil_whole(file, nearest), _loader(copy, box), _loader(file, nearest)
        pairs |= {"loader": (ours, reference), "loader_file": (ours_file, whole), "rounding": (whole, reference)}
        pairs |= {"loader_both": (ours, ours_file)}
    return {name: float(np.mean(np.square(a - b))) for name, (a, b) in pairs.items()}


def _compare(pairs: list[Pair], draws: int, all_of_them: bool = False) -> list[dict[str, Any]]:
    """For each bin of areas the number of crops and the differences, root mean squares in grey levels."""
    found: dict[int, list[dict[str, float]]] = defaultdict(list)
    for i, (file, copy) in enumerate(pairs):
        for position in range(draws):
            for u in crops.view_draws(position, i):
                box = crops.random_resized_crop_box(u, *copy.shape[:2], scale=SCALE, ratio=RATIO)
                area = box[2] * box[3] / (copy.shape[0] * copy.shape[1])
                found[int(np.digitize(area, BINS[1:-1]))].append(_differences(file, copy, box, all_of_them))
    return [
        {"areas": [BINS[k], BINS[k + 1]], "crops": len(found[k])}
        | {name: round(float(np.sqrt(np.mean([d[name] for d in found[k]]))), 2) for name in found[k][0]}
        for k in sorted(found)
    ]


def _resize(image: np.ndarray, side: int, kernel: str) -> np.ndarray:
    height, width = shrink(image, side).shape[:2]
    if kernel == "area":
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling[kernel.upper()]))


def _encode(image: np.ndarray, quality: int, chroma: str) -> bytes:
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[chroma]]
    flags += [cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)[1].tobytes()


def _decode_all(data: list[bytes]) -> None:
    for image in data:
        decode(image, "")


def _microseconds(sets: list[list[bytes]], repeats: int) -> list[int]:
    """Of decoding an image of each set, best of the rounds, in which the sets take turns."""
    runs: list[Callable[[], None]] = [functools.partial(_decode_all, data) for data in sets]
    best = [float("inf")] * len(sets)
    for _ in range(repeats):
        for k, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[k] = min(best[k], time.perf_counter() - start)
    return [round(1e6 * seconds / len(data)) for seconds, data in zip(best, sets, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="images in class folders, FOLDER/train/<class>/*")
    parser.add_argument("--resize", type=int, default=320, help="pixels of the copies' shorter side")
    parser.add_argument("--draws", type=int, default=4, help="pairs of crops of an image, and a quarter of it below")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds of decoding")
    args = parser.parse_args()

    files: Any = open_source("folder", dir=args.folder, dataset="", split="train")
    data = [files.read(i)[0] for i in range(len(files))]
    images = [decode(d, files.image_name(i)) for i, d in enumerate(data)]
    larger = [i for i, image in enumerate(images) if min(image.shape[:2]) > args.resize]
    images = [images[i] for i in larger]
    copies = [shrink(image, args.resize) for image in images]
    stored = [encode(copy) for copy in copies]
    print(json.dumps({"resize": args.resize, "images": len(data), "larger": len(larger)}), flush=True)
    pairs = [(image, decode(s, "")) for image, s in zip(images, stored, strict=True)]
    for row in _compare(pairs, args.draws, all_of_them=True):
        print(json.dumps(row), flush=True)

    draws = max(1, args.draws // 4)

    def report(case: dict[str, Any], others: list[np.ndarray]) -> None:
        rows = _compare(list(zip(images, others, strict=True)), draws)
        print(json.dumps(case | {"pil": [row["pil"] for row in rows]}), flush=True)

    for kernel in KERNELS:
        report({"kernel": kernel}, [_resize(image, args.resize, kernel) for image in images])
    sets = [[_encode(copy, quality, chroma) for copy in copies] for quality, chroma in ENCODINGS]
    assert sets[ENCODINGS.index((QUALITY, "4:4:4"))] == stored
    times = _microseconds([[data[i] for i in larger], *sets], args.repeats)
    whole = {"bytes_of_an_image": round(np.mean([len(data[i]) for i in larger])), "decode_microseconds": times[0]}
    print(json.dumps({"files": True} | whole), flush=True)
    for (quality, chroma), encoded, microseconds in zip(ENCODINGS, sets, times[1:], strict=True):
        case = {"quality": quality, "chroma": chroma, "bytes_of_an_image": round(np.mean([len(e) for e in encoded]))}
        case |= {"decode_microseconds": microseconds}
        report(case, [decode(e, "") for e in encoded])


if __name__ == "__main__":
    main()
