"""Speed of the input for 224 px training against the usual recipe, stage by stage.

    python -m dcjax.data.prepare --folder=FOLDER --name=images --data_dir=DIR
    python -m experiments.benchmarks.input --folder FOLDER --data_dir DIR --dataset images --cores 1
    python -m experiments.benchmarks.input --folder FOLDER --data_dir DIR --dataset images --cores 2

Pairs of views per second on some cores. `pil` is the augmentation of the paper's experiments as torchvision would do it
in worker processes: one decoded image, and for each view random resized crop, flip, colour jitter, grayscale, blur and
solarize with PIL, then float32 and normalisation with NumPy; nothing is collated or copied to a device. `tfds` decodes
as tensorflow-datasets does by default and crops like this package, `dcjax` is this package's loader, both up to the
uint8 batch on the device. `dcjax_augmented` has the rest of the augmentation done on the device. All are warmed up,
then take turns; the best round counts. Then the stages of one pair on one core, in microseconds. JSON lines.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np

from dcjax.data import TrainLoader, train_loader

SIZE = 224
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def _pil_view(image: Any, view: int, rng: np.random.Generator) -> np.ndarray:
    """One augmented view, float32 `[3, 224, 224]`."""
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    from dcjax.data.crops import random_resized_crop_box

    top, left, h, w = random_resized_crop_box(rng, image.height, image.width, scale=SCALE, ratio=RATIO)
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
    """Both views of some files; their number."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for path in paths:
        with open(path, "rb") as file:
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
        for view in (0, 1):
            _pil_view(image, view, rng)
    return len(paths)


def _pil(paths: list[str], pool: futures.Executor | None, cores: int) -> Callable[[int], None]:
    seeds = itertools.count()

    def run(pairs: int) -> None:
        chosen = [list(part) for part in np.array_split(np.resize(paths, pairs), 4 * cores)]
        work = map if pool is None else pool.map
        assert sum(work(_pil_pairs, chosen, [next(seeds) for _ in chosen])) == pairs

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
        views=2,
        threads=args.cores,
        prefetch=2,
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


def _batches(source: Any, use: Callable[[dict[str, Any]], Any], args: argparse.Namespace) -> Callable[[int], None]:
    import jax

    from dcjax.mesh import make_mesh, to_devices

    mesh = make_mesh(1)

    def run(pairs: int) -> None:
        loader = _loader(source, args)  # anew: what it reads ahead must not fall into the turns of others
        for _ in range(pairs // args.batch_size):
            jax.block_until_ready(use(to_devices(next(loader), mesh)))
        loader.close()

    return run


def _augment() -> Callable[[dict[str, Any]], Any]:
    import jax

    from configs import common
    from dcjax.data.augment import Augmentation, two_views

    settings = Augmentation(**common.recipe().augment)
    key = jax.random.key(0)

    @jax.jit
    def augment(images, positions):
        return two_views(images, key, positions, size=SIZE, settings=settings)

    return lambda batch: augment(batch["image"], batch["position"])


def _stages(source: Any, files: Any, args: argparse.Namespace) -> dict[str, float]:
    """Microseconds of each stage for a pair, on one core, best of the rounds."""
    import jax

    from dcjax.data import crops

    count = min(len(source), 128)
    data = [files.read(i)[0] for i in range(count)]
    images = [crops.decode(d, "") for d in data]
    views = np.stack(
        [crops.two_crops(x, seed=0, position=i, size=SIZE, scale=SCALE, ratio=RATIO) for i, x in enumerate(images)]
    )
    positions = np.arange(count, dtype=np.uint32)
    augment = _augment()

    stages: dict[str, Callable[[], Any]] = {
        "read the record": lambda: [source._record(i) for i in range(count)],
        "decode": lambda: [crops.decode(d, "") for d in data],
        "two crops": lambda: [
            crops.two_crops(x, seed=0, position=i, size=SIZE, scale=SCALE, ratio=RATIO) for i, x in enumerate(images)
        ],
        "copy to the device": lambda: jax.block_until_ready(jax.device_put(views.copy())),
        "augment on the device": lambda: jax.block_until_ready(augment({"image": views, "position": positions})),
    }
    return {name: 1e6 * _best(stage, args.repeats) / count for name, stage in stages.items()}


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
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=4, help="batches of a round")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-args.cores :]
    os.sched_setaffinity(0, cores)  # before any library counts them

    from dcjax.data import open_source

    files: Any = open_source("folder", dir=args.folder, dataset="", split="train")
    source = open_source("tfds", dir=args.data_dir, dataset=args.dataset, split="train")
    paths = [files.image_name(i) for i in range(len(files))]
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(args.cores, mp_context=context) if args.cores > 1 else None
    runs = {
        "pil": _pil(paths, pool, args.cores),
        "tfds": _batches(_Decoded(args.data_dir, args.dataset), lambda batch: batch, args),
        "dcjax": _batches(source, lambda batch: batch, args),
        "dcjax_augmented": _batches(source, _augment(), args),
    }
    pairs = args.batches * args.batch_size
    best = dict.fromkeys(runs, float("inf"))
    for repeat in range(-1, args.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run(pairs)
            if repeat >= 0:
                best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        record = {"peer": name, "cores": args.cores, "pairs_per_second": round(pairs / seconds, 1)}
        print(json.dumps(record | {"ratio_to_pil": round(best["pil"] / seconds, 2)}), flush=True)
    if args.cores == 1:
        for name, microseconds in _stages(source, files, args).items():
            print(json.dumps({"stage": name, "microseconds_per_pair": round(microseconds)}), flush=True)


if __name__ == "__main__":
    main()
