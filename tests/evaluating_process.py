"""One of the processes of a test: evaluates fixed features and, as process 0, writes what it found.

python tests/evaluating_process.py OUT.npz ADDRESS PROCESSES PROCESS
"""

import sys

import jax
import numpy as np

from dcjax.data import eval_batches, train_loader
from dcjax.evaluation import (
    extract,
    fit_logistic,
    gather_rows,
    make_encode,
    place_rows,
    sgd_probe,
    spectrum_of_processes,
    standardize,
    take_rows,
    top_k_accuracy,
)
from dcjax.evaluation.knn import knn_accuracy
from dcjax.runtime.mesh import batch_sharding, make_mesh, replicated, start_processes, to_devices

IMAGES, CLASSES = 77, 3


class Pictures:
    """77 images of 3 x 3 pixels, of which the label can be seen."""

    name, fingerprint, classes = "pictures", "pictures", tuple("abc")

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        image = np.random.default_rng(i).integers(200, size=(3, 3, 3)).astype(np.uint8)
        image[i % CLASSES] += 50
        return image, i % CLASSES

    def image_name(self, i):
        return f"picture {i}"


def main(out, address, processes, process):
    if processes > 1:
        start_processes(address, processes, process, heartbeat_timeout_seconds=30)
    mesh = make_mesh()

    def forward(_, images):
        r = images.reshape(len(images), -1) / np.float32(256)
        return {"r": r, "z": r[:, :4]}

    images = {"size": 3, "stored_size": 3, "interpolation": "bilinear", "threads": 1}
    images |= {"batch_size": 8, "process_index": process, "process_count": processes}
    batches = eval_batches(Pictures(), **images)
    found = extract(make_encode(forward, mesh), {}, batches, mesh, images=IMAGES, keep=("r", "z"))
    rows = place_rows(found, mesh)
    (x,) = standardize(rows.r, where=rows.labels >= 0)
    classifier = fit_logistic(x, rows.labels, classes=CLASSES)
    wanted = np.array([[3, 76, 40], [0, 1, 3]], np.int32)
    few = fit_logistic(take_rows(x, rows.index, wanted, mesh=mesh)[0], found.labels[wanted[0]], classes=CLASSES)
    loader = train_loader(Pictures(), **images, seed=0, scale=(1, 1), ratio=(1, 1), views=1, prefetch=1)
    represent = jax.jit(
        lambda batch: (forward({}, batch["image"])["r"], batch["label"]),
        in_shardings=batch_sharding(mesh),
        out_shardings=replicated(mesh),
    )
    sgd = sgd_probe(
        lambda batch: represent(to_devices(batch, mesh)),
        loader,
        rows.r,
        rows.labels,
        columns={"all": slice(None), "some": slice(0, 9)},
        classes=CLASSES,
        images=IMAGES,
        batch_size=8,
        epochs=2,
        learning_rate=1.0,
        schedule="constant",
        momentum=0.9,
        weight_decay=0.0,
        key=jax.random.key(0),
    )
    loader.close()
    results = {
        "r": gather_rows(found.r, found),
        "z": gather_rows(found.z, found),
        "labels": found.labels,
        "spectrum": spectrum_of_processes(found.r[: found.own], normalize=False),
        "taken": take_rows(rows.r, rows.index, wanted, mesh=mesh),
        "knn": knn_accuracy(rows, rows, mesh=mesh, classes=CLASSES, neighbors=5, temperature=0.07),
        "w": classifier.w,
        "residual": classifier.residual,
        "top1": top_k_accuracy(classifier, x, rows.labels, k=1),
        "few": few.w,
        "sgd": [result["top1"] for result in sgd.values()],
        "bytes": found.r.nbytes,
    }
    if process == 0:
        np.savez(out, **{name: np.asarray(value) for name, value in results.items()})
    assert jax.process_count() == processes


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
