"""An image for the tests of crops and of decoding."""

import numpy as np


def smooth(height: int, width: int) -> np.ndarray:
    """An image in which every place has its own colour: red grows downwards, green to the right."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / (height - 1), 255 * x / (width - 1), np.full((height, width), 40)], -1).astype(np.uint8)
