import numpy as np
import pytest
import torch

from tests.training.conftest import data_root, windows  # noqa: F401


@pytest.fixture
def batch(windows):  # noqa: F811
    """Windows of the rigid task, padded, in double precision."""
    return windows[0].batch(np.arange(0, 480, 60), dtype=torch.float64)
