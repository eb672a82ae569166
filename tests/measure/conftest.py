from tests.training.conftest import data_root, windows  # noqa: F401
