"""Loss against unique training data at fixed compute: gaps between arms and the law of repeated data.

Of several sizes the best one counts, of several budgets the largest, where epochs are most.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from eqscale.errors import InputError
from eqscale.laws import Fit, Interval, bootstrap, fit, intervals
from eqscale.report import analysis
from eqscale.report.parts import UNIQUE

Array = np.ndarray

REPEATED = 2.0
"""With at least as many epochs, data count as repeated, with fewer as fresh."""


@dataclasses.dataclass(frozen=True)
class RepetitionLaw:
    """An arm's law of N, tokens and unique tokens, from its compute grid and data grid together."""

    fit: Fit
    found: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Gap:
    """A weighted sum of arms' mean log losses, averaged over levels, with a Student t interval.

    Without seeds that tell the noise the limits are infinite.
    """

    value: float
    low: float
    high: float
    levels: tuple[int, ...]
    """Numbers of unique units averaged over."""

    @property
    def known(self) -> bool:
        """Whether seeds tell the noise."""
        return math.isfinite(self.high)


@dataclasses.dataclass(frozen=True)
class DataGrid:
    """The data grid, with its means and laws of repeated data."""

    runs: pd.DataFrame
    """Finished runs at the largest budget."""
    cells: pd.DataFrame
    """One row per arm, number of unique units and budget: arm, unique_units, budget, unique_tokens, epochs, log_loss
    (mean over seeds of the best size), n (seeds), N, sd and df (seed noise of the arm, pooled over cells)."""
    units: str
    """What a unit is called, in the plural."""
    laws: dict[str, RepetitionLaw] = dataclasses.field(default_factory=dict)
    unfitted: dict[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def levels(self) -> pd.DataFrame:
        """The cells at the largest budget."""
        return self.cells[self.cells["budget"] == self.cells["budget"].max()].reset_index(drop=True)

    def arms(self) -> list[str]:
        """Arms in order of appearance."""
        return list(dict.fromkeys(self.levels["arm"]))

    def gap(self, weights: Mapping[str, float], levels: list[int]) -> Gap:
        """Σ weight × mean log loss of the arms, averaged over levels that all of them have.

        The noise is the seeds' scatter. The interval is a little too wide because all arms share their test data.
        """
        at = {arm: self.levels[self.levels["arm"] == arm].set_index(UNIQUE) for arm in weights}
        shared = [u for u in levels if all(u in table.index for table in at.values())]
        if not shared:
            return Gap(math.nan, -math.inf, math.inf, ())
        value = float(sum(w * at[arm].loc[shared, "log_loss"].mean() for arm, w in weights.items()))
        noise = ((w * at[arm]["sd"].iloc[0]) ** 2 * (1 / at[arm].loc[shared, "n"]).mean() for arm, w in weights.items())
        variance = float(sum(noise)) / len(shared)
        df = min(int(table["df"].iloc[0]) for table in at.values())
        half = float(stats.t.ppf(0.975, df)) * math.sqrt(variance) if df else math.inf
        return Gap(value, value - half, value + half, tuple(shared))

    def excess(self, weights: Mapping[str, float], levels: list[int]) -> Gap:
        """``gap`` at these levels minus ``gap`` where the data of all the arms are fresh.

        For one arm with weight 1 it is the log of what repetition costs: the loss over that with fresh data. For two
        arms it leaves out the lead that one has with fresh data. NaN if no level has fresh data.
        """
        fresh = self.gap(weights, self.fresh_levels(list(weights)))
        here = self.gap(weights, levels)
        value, half = here.value - fresh.value, math.hypot(here.high - here.value, fresh.high - fresh.value)
        return Gap(value, value - half, value + half, here.levels)

    def levels_with_epochs(self, arms: list[str], least: float) -> list[int]:
        """Numbers of unique units at which all the arms saw their data at least ``least`` times."""
        here = self.levels[self.levels["arm"].isin(arms)]
        epochs = here.groupby(UNIQUE)["epochs"].agg(["min", "size"])
        return [int(u) for u in epochs.index[(epochs["min"] >= least) & (epochs["size"] == len(arms))]]

    def fresh_levels(self, arms: list[str]) -> list[int]:
        """Numbers of unique units at which none of the arms saw repeated data."""
        epochs = self.levels[self.levels["arm"].isin(arms)].groupby(UNIQUE)["epochs"].max()
        return [int(u) for u in epochs.index[epochs < REPEATED]]

    def equivalent_data(self, arm: str, reference: str) -> dict[int, float]:
        """By number of unique units, how many times as many the reference needs for the arm's loss.

        Read off straight lines in log–log between the measured means. Infinite if the reference reaches that loss at no
        number that was run, NaN if it is already better at its smallest.
        """
        ours, theirs = (self.levels[self.levels["arm"] == a].sort_values(UNIQUE) for a in (arm, reference))
        log_u, log_loss = np.log(theirs[UNIQUE].to_numpy(float)), theirs["log_loss"].to_numpy()
        falling = np.minimum.accumulate(log_loss)  # noise aside, more data never hurt
        needed = np.exp(np.interp(-ours["log_loss"], -falling, log_u, left=math.nan, right=math.inf))
        return dict(zip(ours[UNIQUE].astype(int), needed / ours[UNIQUE], strict=True))


def read_data_grid(data: pd.DataFrame, compute: pd.DataFrame, units: str) -> DataGrid | None:
    """Levels and repetition laws of a data grid; None without one.

    Args:
        data: finished runs of the data grid.
        compute: finished runs of the compute grid, for the dependence on N.
        units: what a unit of the data is called, in the plural.

    Raises:
        InputError: the table lacks the numbers of unique units or tokens.
    """
    if data.empty:
        return None
    for column, name in ((UNIQUE, f"unique_{units}"), ("unique_tokens", "unique_tokens")):
        if column not in data:
            raise InputError(f"data grid: the column {name!r} is missing")
    laws, unfitted = {}, {}
    for position, arm in enumerate(dict.fromkeys(data["arm"])):
        runs = pd.concat([part[part["arm"] == arm] for part in (compute, data) if "unique_tokens" in part])
        try:
            law = fit(runs["N"], runs["D"], runs["loss"], U=runs["unique_tokens"], form="repetition", where=arm)
        except InputError as error:
            unfitted[arm] = str(error)
            continue
        boot = bootstrap(law, resamples=analysis.RESAMPLES, seed=position)
        laws[arm] = RepetitionLaw(law, intervals(law, boot))
    return dataclasses.replace(measured_grid(data, units), laws=laws, unfitted=unfitted)


def measured_grid(data: pd.DataFrame, units: str) -> DataGrid:
    """``read_data_grid`` without laws."""
    noise = analysis.seed_noise(data)
    losses = data.assign(log_loss=np.log(data["loss"].astype(float)))
    cells = losses.groupby(["arm", UNIQUE, "budget", "N"], sort=False).agg(
        unique_tokens=("unique_tokens", "mean"), epochs=("epochs", "mean"), log_loss=("log_loss", "mean"),
        n=("log_loss", "size"), D=("D", "mean"),
    ).reset_index()  # fmt: skip
    best = cells.loc[cells.groupby(["arm", UNIQUE, "budget"], sort=False)["log_loss"].idxmin()]
    sd, df = zip(*(analysis.pooled_noise(noise, arm) for arm in best["arm"]), strict=True)
    best = best.assign(sd=sd, df=df).sort_values(["arm", UNIQUE, "budget"], kind="stable", ignore_index=True)
    return DataGrid(data[data["budget"] == data["budget"].max()], best, units)
