"""scikit-learn's digits as uint8 arrays, a fifth of them held out."""

import numpy as np
from sklearn.datasets import load_digits

_levels, _labels = load_digits(return_X_y=True)
_images = np.round(_levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
_order = np.random.RandomState(0).permutation(len(_images))

TRAIN = _images[_order[360:]], _labels[_order[360:]].astype(np.int32)
TEST = _images[_order[:360]], _labels[_order[:360]].astype(np.int32)
