"""A look's measures against slow references, and when it warns."""

import numpy as np
import pytest

from dcjax.collapse import metrics, spectrum
from dcjax.collapse.monitor import MEASURES, Look, look, noise_share, signs_of, similarities, warnings_of
from dcjax.collapse.plot import spectra_image
from dcjax.collapse.weights import projector_alignment


def views_of(r, z, *, noise=0.1, seed=1):
    rng = np.random.default_rng(seed)
    other = [rows + noise * rng.standard_normal(rows.shape) for rows in (r, z)]
    return {"r": r, "r_prime": other[0], "z": z, "z_prime": other[1]}


def seen(step, *, loss=2.0, rank=10.0, collapsed=0, lost=0, dim=64, verdict="none", names=("r", "z")):
    """A look with given values of r and z."""
    values = {"loss": loss, "loss_chance": 5.0}
    for name in names:
        values |= {f"{name}/effective_rank": rank, f"{name}/dim": dim}
        values |= {f"{name}/collapsed": collapsed, f"{name}/lost": lost}
    words = dict.fromkeys(names, "reason; advice")
    return Look(step, values, dict.fromkeys(names, verdict), words, {name: np.ones(2) for name in names})


def kinds_of(looks, **options):
    """The kinds of warnings at each look."""
    history, found = [], []
    for one in looks:
        signs = signs_of(history, one, **options)
        warnings = warnings_of(history, signs)
        history.append({"step": one.step, "monitor": one.values, "signs": sorted(signs), "warnings": warnings})
        found.append(set(warnings))
    return found


def test_a_look_has_the_measures_as_users_compute_them():
    rng = np.random.default_rng(0)
    r, z = rng.standard_normal((80, 12)) * np.geomspace(1, 1e-2, 12) + 0.5, rng.standard_normal((80, 5))
    views = views_of(r, z)
    found = look(7, views, values={"loss": 1.0, "bad": np.nan})
    for name in ("r", "z"):
        expected = metrics(views[name], views[f"{name}_prime"], names=[m for m in MEASURES if m != "alpha_req"])
        for measure, value in expected.items():
            assert found.values[f"{name}/{measure}"] == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(found.spectra[name], spectrum(views[name], normalize=True), rtol=1e-10)
    assert found.values["loss"] == 1.0
    assert "bad" not in found.values
    assert found.verdicts == {"r": "none", "z": "none"}
    assert (found.values["r/dim"], found.values["r/collapsed"], found.values["r/lost"]) == (12, 0, 0)


def test_dead_columns_are_told_from_lost_directions():
    rng = np.random.default_rng(0)
    r = np.abs(rng.standard_normal((80, 12)))
    r[:, :3] = 0  # dead
    r[:, 3] = r[:, 4] + r[:, 5]  # a direction over several columns
    found = look(1, views_of(r, r, noise=0.0)).values
    assert (found["r/collapsed"], found["r/lost"]) == (4, 1)
    assert found["z/effective_rank"] == found["r/effective_rank"]  # without a projector r is z


def test_too_few_rows_are_not_counted():
    rows = np.random.default_rng(0).standard_normal((10, 12))
    found = look(1, views_of(rows, rows))
    assert found.verdicts["r"] == "undetermined"
    assert "r/collapsed" not in found.values


def test_similarities():
    z, z_prime = np.random.default_rng(0).standard_normal((2, 9, 4)) + 0.3
    slow = {True: [], False: []}
    for i, a in enumerate(z):
        for j, b in enumerate(z_prime):
            slow[i == j].append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    found = similarities(z, z_prime)
    assert found["positive_similarity"] == pytest.approx(np.mean(slow[True]), rel=1e-12)
    assert found["negative_similarity"] == pytest.approx(np.mean(slow[False]), rel=1e-10)


def test_the_share_of_the_augmentation():
    """Signal and noise of known variances; unrelated views; the same views."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((5000, 8))
    views = [signal + 0.5 * rng.standard_normal(signal.shape) + 3 for _ in range(2)]
    # E |z - z'|^2 / 2 = 0.25 of 1.25 a coordinate; 40,000 squares scatter by 1 / sqrt(20,000)
    assert noise_share(*views) == pytest.approx(0.2, rel=0.03)
    assert noise_share(signal, rng.standard_normal(signal.shape)) == pytest.approx(1, rel=0.03)
    assert noise_share(signal, signal) == 0
    assert np.isnan(noise_share(np.ones((3, 2)), np.ones((3, 2))))


def test_the_alignment_of_a_projector():
    """W2 W1 with V2 = U1 is aligned, for any U2, V1 and signs; a random matrix is not."""
    rng = np.random.default_rng(0)

    def frame(n, k):
        return np.linalg.qr(rng.standard_normal((n, k)))[0]

    u1, v1, u2 = frame(64, 64), frame(90, 64), frame(32, 32)
    kernel = (u1 * np.geomspace(3, 0.1, 64)) @ v1.T  # W1, [64, 90]
    matrix = (u2 * np.geomspace(2, 0.5, 32)) @ (u1[:, :32] * rng.choice([-1, 1], 32)).T  # W2, [32, 64]
    aligned = projector_alignment(kernel.T, matrix.T)
    assert aligned == pytest.approx({"alignment": 1.0, "overlap": 1.0}, abs=1e-10)
    random = projector_alignment(kernel.T, rng.standard_normal((64, 32)))
    # The expectations are sqrt(2 / (64 pi)) = 0.1 and 4 / 64; a mean of 32 and a sum of 16 squares scatter around them.
    assert random["alignment"] < 0.2
    assert random["overlap"] < 0.3
    assert projector_alignment(kernel.T, frame(64, 64)) == {}  # no singular directions
    assert projector_alignment(kernel.T, np.zeros((64, 32))) == {}


def test_a_healthy_run_is_not_warned_about():
    looks = [seen(0, loss=5.2, rank=40.0, collapsed=60, lost=60, verdict="dimensional")]  # before the first step
    looks += [seen(50, loss=4.98), seen(100, loss=4.0, rank=30.0, collapsed=15, lost=3), seen(150, rank=16.0)]
    assert kinds_of(looks) == [set()] * 4


def test_a_loss_that_stays_at_its_chance_line():
    found = kinds_of([seen(0, loss=5.0), seen(50, loss=4.96), seen(100, loss=4.96), seen(150, loss=4.96)])
    assert found == [set(), set(), {"chance"}, set()]  # said once
    found = kinds_of([seen(step, loss=4.96) for step in (0, 10, 20, 30, 40)], warmup_steps=25)
    assert found == [set(), set(), set(), set(), {"chance"}]  # two looks after the warm-up


def test_directions_that_are_lost():
    found = kinds_of([seen(50, lost=4, collapsed=4, names=("z",)), seen(100, lost=4, collapsed=4, names=("z",))])
    assert found == [set(), {"z/dimensional"}]
    found = kinds_of([seen(50, collapsed=16, names=("r",)), seen(100, collapsed=16, names=("r",))])
    assert found == [set(), {"r/dimensional"}]
    assert kinds_of([seen(50, collapsed=16), seen(100), seen(150, collapsed=16)]) == [set()] * 3  # not in a row
    looks = [seen(step, collapsed=16, names=("r",)) for step in (10, 20, 30, 40)]
    assert kinds_of(looks, warmup_steps=25) == [set(), set(), set(), {"r/dimensional"}]


def test_a_sign_that_comes_again_is_said_again():
    gone, there = seen(0, names=("r",)), seen(0, collapsed=16, names=("r",))
    order = [there, there, there, gone, there, there, gone, gone, there, there]
    looks = [Look(10 * (i + 1), one.values, one.verdicts, one.advice, one.spectra) for i, one in enumerate(order)]
    found = [i for i, kinds in enumerate(kinds_of(looks)) if kinds]
    assert found == [1, 5, 9]  # the sign itself needs two looks in a row, so a single look without it clears two


def test_a_rank_that_falls():
    found = kinds_of([seen(50, rank=30.0), seen(100, rank=16.0), seen(150, rank=14.0), seen(200, rank=3.0)])
    assert found == [set(), set(), {"r/rank", "z/rank"}, set()]


def test_a_point():
    one = seen(5, verdict="complete")
    found = signs_of([], one, warmup_steps=100)  # whenever it is
    assert found.keys() == {"r/complete", "z/complete"}
    assert found["z/complete"] == "z has collapsed to a point: reason; advice"
    without_projector = Look(5, one.values, one.verdicts, one.advice, {"r": one.spectra["r"], "z": one.spectra["r"]})
    assert signs_of([], without_projector).keys() == {"z/complete"}


def test_an_embedding_that_cannot_be_measured():
    found = signs_of([], Look(50, advice={"z": "r and z could not be measured (z must be finite)"}))
    assert found == {"unmeasured": "r and z could not be measured (z must be finite)"}


@pytest.mark.parametrize("kind", ["low_rank", "low_rank_diagonal", "wide"])
def test_directions_that_a_projector_leaves_out_are_not_lost(kind):
    rng = np.random.default_rng(0)
    r = rng.standard_normal((200, 12)).astype(np.float32)
    frames = [np.linalg.qr(rng.standard_normal((12, 4)))[0] for _ in range(2)]
    matrix = {
        "low_rank": frames[0] @ frames[1].T,
        "low_rank_diagonal": np.diag(np.arange(12) < 4),
        "wide": rng.standard_normal((12, 20)),
    }[kind].astype(np.float32)
    found = look(1, views_of(r, r @ matrix, noise=0.0), matrix=matrix)
    assert found.values["z/dim"] == (12 if kind == "wide" else 4)
    assert (found.values["z/collapsed"], found.values["z/lost"]) == (0, 0)
    assert found.verdicts == {"r": "none", "z": "none"}
    z = r @ matrix
    z -= np.outer(z @ (v := z[0] / np.linalg.norm(z[0])), v)  # a direction in its range is lost
    found = look(1, views_of(r, z.astype(np.float32), noise=0.0), matrix=matrix)
    assert found.values["z/collapsed"] == 1
    assert found.verdicts["z"] == "dimensional"


def test_the_image_for_tensorboard():
    image = spectra_image({"r": np.geomspace(1, 1e-6, 40), "z": np.array([1.0, 0.0])})
    assert image.shape == (240, 336, 3)
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10
