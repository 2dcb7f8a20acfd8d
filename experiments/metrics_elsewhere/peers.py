"""The packages that are run; each is imported where it is called, so that the page can be rendered without them."""

import importlib.metadata
import importlib.util
from typing import Any

import numpy as np

from dcjax.runtime.errors import SettingError
from experiments.metrics_elsewhere.matrices import Pairs, Rows

# Module to distribution, of the packages that are run.
PEERS = {
    "embedding_quality": "embedding-quality==0.1.1",
    "dimensionality": "dimensionality==0.1.4",
    "IsoScore": "IsoScore==2.0.1",
    "skdim": "scikit-dimension==0.5.0",
    "reptrix": "reptrix==0.1.0",
    "torch": "torch==2.13.0",
}


def versions() -> dict[str, str]:
    """The installed versions of the packages, by distribution."""
    return {peer.split("==")[0]: importlib.metadata.version(peer.split("==")[0]) for peer in PEERS.values()}


def check_peers() -> None:
    """Raises `SettingError` unless all packages are installed."""
    missing = [peer for module, peer in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SettingError(
            f"the packages to compare with must be installed, missing {', '.join(missing)}; "
            f"pip install {' '.join(PEERS.values())}"
        )


def embedding_quality(name: str, rows: Rows) -> Any:
    """A measure of embedding-quality."""
    from embedding_quality.evaluation import UnsupervisedEmbeddingQualityEvaluation

    return getattr(UnsupervisedEmbeddingQualityEvaluation, name)(rows.z)


def reptrix_rankme(rows: Rows) -> float:
    """RankMe of reptrix."""
    import torch
    from reptrix.rankme import get_rankme

    return get_rankme(torch.from_numpy(rows.z))


def reptrix_alpha(rows: Rows, fit_range: np.ndarray | None = None) -> float:
    """alpha of reptrix, by default fitted to the zero-based indices 10..99; it changes `fit_range`."""
    import torch
    from reptrix.alpha import get_alpha

    return get_alpha(torch.from_numpy(rows.z), fit_range=fit_range)[0]


def reptrix_alpha_again(rows: Rows) -> float | None:
    """The second of two calls with the same array as the range of the fit."""
    if rows.rank < 100:
        return None
    fit_range = np.arange(10, 100)
    reptrix_alpha(rows, fit_range)
    return reptrix_alpha(rows, fit_range)


def reptrix_lidar(pairs: Pairs, **settings: Any) -> float:
    """LiDAR of reptrix."""
    import torch
    from reptrix.lidar import get_lidar

    return get_lidar(torch.from_numpy(pairs.z), *pairs.z.shape[:2], **settings)


def iso_score(z: np.ndarray) -> float | None:
    """IsoScore; None beyond 1,024 columns, where it takes long."""
    import torch
    from IsoScore.IsoScore import IsoScore

    return float(IsoScore(torch.from_numpy(z))) if z.shape[1] <= 1024 else None


def fitted(name: str, z: np.ndarray, **settings: Any) -> float:
    """The dimension that an estimator of scikit-dimension finds."""
    import skdim

    return getattr(skdim.id, name)(**settings).fit(z).dimension_
