"""Public runs and synthetic ones shared by the tests of the laws."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


def chinchilla_path() -> Path | None:
    """The digitised Chinchilla runs: beside the checkout or a parent of it, or in EQSCALE_DATA."""
    here = Path(__file__).resolve()
    places = [Path(os.environ["EQSCALE_DATA"])] if "EQSCALE_DATA" in os.environ else []
    places += [parent / "shared" / "data" for parent in here.parents]
    return next((p / "chinchilla_epoch.csv" for p in places if (p / "chinchilla_epoch.csv").is_file()), None)


@pytest.fixture(scope="session")
def chinchilla_csv() -> Path:
    path = chinchilla_path()
    if path is None:
        pytest.skip("needs ../shared/data/chinchilla_epoch.csv (or EQSCALE_DATA=its folder)")
    return path


@pytest.fixture(scope="session")
def chinchilla(chinchilla_csv: Path) -> pd.DataFrame:
    """The 240 runs that Besiroglu et al. (2024) fit."""
    frame = pd.read_csv(chinchilla_csv)
    return frame[frame.excluded_by_epoch == 0].reset_index(drop=True)


def law(N, D, E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37):
    return E + A / N**alpha + B / D**beta


@pytest.fixture
def isoflop(isoflop_runs: pd.DataFrame) -> pd.DataFrame:
    """Five budgets of six sizes with 0.6 % noise, to change."""
    return isoflop_runs.copy()


@pytest.fixture(scope="session")
def isoflop_runs() -> pd.DataFrame:
    """What ``isoflop`` is a copy of."""
    rng = np.random.default_rng(3)
    rows = []
    for C in 10.0 ** np.arange(17, 22):
        best = 0.1 * C**0.5
        for factor in np.geomspace(1 / 8, 8, 6):
            N = best * factor
            rows.append({"N": N, "D": C / (6 * N), "C": C})
    frame = pd.DataFrame(rows)
    frame["loss"] = law(frame.N, frame.D) * np.exp(0.006 * rng.standard_normal(len(frame)))
    return frame
