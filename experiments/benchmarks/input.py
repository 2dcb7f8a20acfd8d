"""Speed of the input for 224 px training against the usual recipe, stage by stage.

    dcjax prepare --folder=FOLDER --name=images --data_dir=DIR
    python -m experiments.benchmarks.input --folder FOLDER --data_dir DIR --dataset images --cores 1
    python -m experiments.benchmarks.input --folder FOLDER --data_dir DIR --dataset images --cores 2
    dcjax prepare --folder=FOLDER --name=images_320 --data_dir=DIR --resize=320
    python -m experiments.benchmarks.input --folder FOLDER --data_dir DIR --dataset images --resized images_320

Pairs of views per second on some cores. `pil` is the augmentation of the paper's experiments as torchvision would do it
in worker processes: one decoded image, and for each view random resized crop, flip, colour jitter, grayscale, blur and
solarize with PIL, then float32 and normalisation with NumPy, and a batch stacked by the worker; that it would still
have to get to another process and to a device is not counted. `tfds` decodes as tensorflow-datasets does by default and
crops like this package, `dcjax` is this package's loader, both up to the uint8 batch on the device. `dcjax_augmented`
has the rest of the augmentation done on the device. With `--resized`, `dcjax_resized` and `dcjax_resized_augmented` are
the same of a set that was prepared with --resize, and the bytes of both sets are told. All are warmed up, then take
turns; the best round counts. Then, on one core, the stages of a pair in microseconds, of both sets, and with
`--memory` the resident memory before and after ten epochs. JSON lines.
"""

import argparse
import functools
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np

from dcjax.data import TrainLoader, train_loader

SIZE = 224
PEERS = ("pil", "tfds", "dcjax", "dcjax_augmented", "dcjax_resized", "dcjax_resized_augmented")
READ_AHEAD = 2  # batches
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def _pil_view(image: Any, view: int, rng: np.random.Generator) -> np.ndarray:
    """One augmented view, float32 `[3, 224, 224]`."""
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    from dcjax.data.crops import DRAWS, random_resized_crop_box

    draws = rng.random(DRAWS).tolist()
    top, left, h, w = random_resized_crop_box(draws, image.height, image.width, scale=SCALE, ratio=RATIO)
    image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        for operation in rng.permutation(4):
            strength = JITTER[operation]
            if operation == 3:
                hue, saturation, value = image.convert("HSV").split()
                shift = np.uint8(int(rng.uniform(-strength, strength) * 255) % 256)
                hue = Image.fromarray(np.array(hue) + shift)
                image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
            else:
                kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
                image = kind(image).enhance(rng.uniform(1 - strength, 1 + strength))
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if rng.random() < (1.0, 0.1)[view]:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < (0.0, 0.2)[view]:
        image = ImageOps.solarize(image)
    return np.ascontiguousarray(((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1))


def _pil_pairs(paths: list[str], seed: int) -> int:
    """A batch of both views of some files; their number."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    pairs = []
    for path in paths:
        with open(path, "rb") as file:
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
        pairs.append([_pil_view(image, view, rng) for view in (0, 1)])
    batch = [np.stack(views) for views in zip(*pairs, strict=True)]
    return len(batch[0])


def _pil(paths: list[str], pool: futures.Executor | None, batch_size: int) -> Callable[[int], float]:
    seeds = itertools.count()

    def run(pairs: int) -> float:
        batches = [list(part) for part in np.split(np.resize(paths, pairs), pairs // batch_size)]
        work = map if pool is None else pool.map
        start = time.perf_counter()
        assert sum(work(_pil_pairs, batches, [next(seeds) for _ in batches])) == pairs
        return time.perf_counter() - start

    return run


def _loader(source: Any, args: argparse.Namespace) -> TrainLoader:
    return train_loader(
        source,
        batch_size=args.batch_size,
        seed=0,
        size=SIZE,
        stored_size=0,
        scale=SCALE,
        ratio=RATIO,
        interpolation="bicubic",
        views=2,
        threads=args.cores,
        prefetch=READ_AHEAD,
    )


class _Decoded:
    """The same images as tensorflow-datasets decodes them by default."""

    def __init__(self, data_dir: str, dataset: str):
        import tensorflow_datasets as tfds

        folder = sorted((pathlib.Path(data_dir) / dataset).glob("[0-9]*[0-9]"))[-1]
        self._records = tfds.builder_from_directory(folder).as_data_source("train")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        record = self._records[i]
        return record["image"], int(record["label"])


def _batches(source: Any, use: Callable[[dict[str, Any]], Any], args: argparse.Namespace) -> Callable[[int], float]:
    import jax

    from dcjax.runtime.mesh import make_mesh, to_devices

    mesh = make_mesh(1)

    def run(pairs: int) -> float:
        loader = _loader(source, args)  # a new one each turn, so that it does not read ahead in the turns of others
        for batch in range(READ_AHEAD + 1 + pairs // args.batch_size):
            jax.block_until_ready(use(to_devices(next(loader), mesh)))
            if batch == READ_AHEAD:
                start = time.perf_counter()  # it has read as far ahead now as it will have at the end
        seconds = time.perf_counter() - start
        loader.close()  # waits for the reading threads
        return seconds

    return run


def _augment() -> Callable[[dict[str, Any]], Any]:
    import jax

    from configs import common
    from dcjax.data import Augmentation
    from dcjax.data.augment import two_views

    settings = Augmentation(**common.recipe().augment)
    key = jax.random.key(0)

    @jax.jit
    def augment(images, positions):
        return two_views(images, key, positions, size=SIZE, settings=settings)

    return lambda batch: augment(batch["image"], batch["position"])


def _stages(source: Any, args: argparse.Namespace) -> dict[str, float]:
    """Microseconds of each stage for a pair, on one core, best of the rounds."""
    import jax

    from dcjax.data import crops
    from dcjax.data.decode import decode

    count = min(len(source), 128)
    data = [source.read(i)[0] for i in range(count)]
    images = [decode(d, "") for d in data]
    views = np.empty((count, 2, SIZE, SIZE, 3), np.uint8)
    positions = np.arange(count, dtype=np.uint32)
    augment = _augment()

    def crop(i: int) -> None:
        crops.random_crops(images[i], views[i], seed=0, position=i, scale=SCALE, ratio=RATIO, interpolation="bicubic")

    # The result of each image is dropped before the next one, as in the loader, so that memory is reused.
    per_image: dict[str, Callable[[int], Any]] = {
        "read the record": source.read,
        "decode": lambda i: decode(data[i], ""),
        "two crops": crop,
    }

    def each(stage: Callable[[int], Any]) -> None:
        for i in range(count):
            stage(i)

    times = {name: _best(functools.partial(each, stage), args.repeats) for name, stage in per_image.items()}
    batch = {"image": jax.device_put(views), "position": positions}
    times["augment on the device"] = _best(lambda: jax.block_until_ready(augment(batch)), args.repeats)
    return {name: 1e6 * seconds / count for name, seconds in times.items()}


def _set_bytes(args: argparse.Namespace, name: str) -> int:
    """The bytes of a prepared set's files."""
    folder = sorted((pathlib.Path(args.data_dir) / name).glob("[0-9]*[0-9]"))[-1]
    return sum(path.stat().st_size for path in folder.glob("*array_record*"))


def _memory(source: Any, args: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Megabytes of this process after the first and after ten more epochs of batches."""
    run = _batches(source, lambda batch: batch, args)
    for epochs in (1, 10):
        run(epochs * len(source) // args.batch_size * args.batch_size or args.batch_size)
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        yield epochs, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _best(function: Callable[[], Any], repeats: int) -> float:
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="images in class folders, FOLDER/train/<class>/*")
    parser.add_argument("--data_dir", required=True, help="where the set that was prepared of them lies")
    parser.add_argument("--dataset", required=True, help="its name")
    parser.add_argument("--resized", help="name of a set of the same images that was prepared with --resize")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="all unless given; the resized ones need --resized")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="ten epochs of memory")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=4, help="batches of a round")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    args = parser.parse_args()
    peers = args.peers or [name for name in PEERS if args.resized or "resized" not in name]
    if not args.resized and any("resized" in name for name in peers):
        parser.error("the resized peers need --resized NAME")
    cores = sorted(os.sched_getaffinity(0))[-args.cores :]
    os.sched_setaffinity(0, cores)  # before any library counts them

    from dcjax.data import open_source

    files: Any = open_source("folder", dir=args.folder, dataset="", split="train")
    source = open_source("tfds", dir=args.data_dir, dataset=args.dataset, split="train")
    paths = [files.image_name(i) for i in range(len(files))]
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(args.cores, mp_context=context) if args.cores > 1 else None
    sets = {"dcjax": source}
    if args.resized:
        sets["dcjax_resized"] = open_source("tfds", dir=args.data_dir, dataset=args.resized, split="train")
    runs = {
        "pil": _pil(paths, pool, args.batch_size),
        "tfds": _batches(_Decoded(args.data_dir, args.dataset), lambda batch: batch, args),
    }
    for name, one in sets.items():
        runs |= {name: _batches(one, lambda batch: batch, args), f"{name}_augmented": _batches(one, _augment(), args)}
    runs = {name: runs[name] for name in peers}
    pairs = args.batches * args.batch_size
    best = dict.fromkeys(runs, float("inf"))
    for repeat in range(-1, args.repeats):
        for name, run in runs.items():
            seconds = run(pairs)
            if repeat >= 0:
                best[name] = min(best[name], seconds)
    for name, seconds in best.items():
        record = {"peer": name, "cores": args.cores, "pairs_per_second": round(pairs / seconds, 1)}
        for other in ("pil", "dcjax"):
            if other in best and other != name:
                record[f"ratio_to_{other}"] = round(best[other] / seconds, 3)
        print(json.dumps(record), flush=True)
    if args.resized:
        for name in (args.dataset, args.resized):
            print(json.dumps({"set": name, "images": len(source), "bytes": _set_bytes(args, name)}), flush=True)
    if args.cores == 1:
        for name, one in sets.items():
            for stage, microseconds in _stages(one, args).items():
                record = {"peer": name, "stage": stage, "microseconds_per_pair": round(microseconds)}
                print(json.dumps(record), flush=True)
    if args.cores == 1 and args.memory:
        for epochs, megabytes in _memory(source, args):
            print(json.dumps({"epochs_more": epochs, "resident_megabytes": round(megabytes)}), flush=True)


if __name__ == "__main__":
    main()
