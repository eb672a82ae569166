"""Tables and sentences on a data grid: its means, what repetition costs, and the law of repeated data."""

from __future__ import annotations

import math

from eqscale.laws.render import with_interval
from eqscale.numbers import number
from eqscale.report.data_grid import REPEATED, DataGrid, Gap
from eqscale.report.exhibits import UNSEEN, Table, link, numbered
from eqscale.report.parts import UNIQUE
from eqscale.report.roles import Roles
from eqscale.roles import Role


def data_table(grid: DataGrid, roles: Roles) -> Table:
    """Loss of every arm by number of unique units, and how many the baseline needs for the others' losses."""
    names, base = grid.arms(), roles.baseline
    equivalents = {
        arm: grid.equivalent_data(arm, base)
        for arm in (*roles.built_in, *roles.arms[Role.AUGMENT])
        if base in names and arm in names
    }
    rows = []
    others = grid.levels.loc[grid.levels["arm"] == base, UNIQUE]
    for units, level in grid.levels.groupby(UNIQUE):
        cells = {
            r.arm: f"{math.exp(r.log_loss):.4f}"
            + (f" ± {math.exp(r.log_loss) * r.sd / math.sqrt(r.n):.4f}" if math.isfinite(r.sd) else "")
            for r in level.itertuples()
        }
        reach = (float(others.min()) / units, float(others.max()) / units)  # type: ignore[operator]
        worth = [_times(found[int(units)], *reach) if units in found else UNSEEN for found in equivalents.values()]  # type: ignore[call-overload]
        epochs = f"{level['epochs'].mean():.3g}"
        rows.append([f"{units:g}", epochs, *(cells.get(name, UNSEEN) for name in names), *worth])
    header = [f"unique {grid.units}", "epochs", *(f"`{name}`" for name in names)]
    header += [f"`{base}` for `{arm}`" for arm in equivalents]
    budgets = ", ".join(number(b, 3) for b in sorted(grid.runs["budget"].unique()))
    sizes = int(grid.runs.groupby(["arm", UNIQUE])["N"].nunique().max())
    note = f"Mean over seeds ± standard error from seeds, at {budgets} executed FLOPs."
    note += f" A loss is the lowest of up to {sizes} sizes." * (sizes > 1)
    if equivalents:
        note += f" *`{base}` for …*: how many times as many {grid.units} `{base}` needs for that arm's loss."
    return Table("data", "Loss against unique training data at one budget", header, rows, note)


def repetition_table(grid: DataGrid) -> Table:
    """What repeated data cost every arm."""
    names = grid.arms()
    levels = grid.levels.groupby(UNIQUE)["epochs"].mean()
    rows = [
        [f"{units:g}", f"{epochs:.3g}", *(_factor(grid.excess({name: 1.0}, [int(units)])) for name in names)]  # type: ignore[call-overload]
        for units, epochs in levels[levels >= REPEATED].items()
    ]
    header = [f"unique {grid.units}", "epochs", *(f"`{name}`" for name in names)]
    return Table(
        "repetition", "What repetition costs", header, rows,
        f"An arm's loss over its own with fresh data (mean over the rows of {numbered('data')} with fewer than "
        f"{REPEATED:g} epochs), with the 95 % interval of the seeds' scatter. It leaves out the lead that an arm "
        "has with fresh data.",
    )  # fmt: skip


def repetition_law_table(grid: DataGrid) -> Table:
    """The law of repeated data of every arm."""
    rows = []
    for arm, law in grid.laws.items():
        found = (with_interval(i.estimate, *i.recommended) for i in (law.found["R_D"], law.found["beta"]))
        rows.append([f"`{arm}`", str(law.fit.n), *found, law.fit.verdict.state])
    rows += [[f"`{arm}`", *[UNSEEN] * 3, f"no law: {why}"] for arm, why in grid.unfitted.items()]
    return Table(
        "repetition_law", "Law of repeated data", ["arm", "runs", "R", "β", "verdict"], rows,
        "L = E + A/N^α + B/D_eff^β with D_eff = U (1 + R (1 − exp(−(D/U − 1)/R))) for D tokens, U of them unique "
        "(Muennighoff et al. 2023), fitted to the compute grid and the data grid together: repeated data are worth at "
        "most R times the unique ones. It can't express a loss that rises with epochs.",
    )  # fmt: skip


def data_lines(grid: DataGrid, roles: Roles) -> list[str]:
    """What scarce data cost each built-in arm and those that learn, leaving out who is ahead with fresh data."""
    base, augmented = roles.baseline, roles.augmented
    if base is None or augmented is None:
        return []
    built_in = [arm for arm in roles.built_in if arm in grid.arms()]
    arms = [*built_in, base, augmented]
    levels = grid.levels_with_epochs(arms, REPEATED)
    fewest = {name: grid.excess({name: 1.0}, levels[:1]) for name in arms} if levels else {}
    if not built_in or not levels or any(math.isnan(price.value) for price in fewest.values()):
        return []
    said = ", ".join(f"`{name}` {_factor(price)}" for name, price in fewest.items())
    lines = [
        f"Scarce data, at one budget: with {levels[0]} {grid.units} losses grow over those with fresh data by these "
        f"factors: {said} ({link('repetition')})."
    ]
    compared = []
    for arm in built_in:
        plain, left = (_factor(grid.excess({name: 1.0, arm: -1.0}, levels)) for name in (base, augmented))
        compared.append(f"`{arm}` {plain} and {left}")
    lines.append(
        f"Averaged over {', '.join(map(str, levels))} {grid.units}, repetition costs `{base}` and `{augmented}` this "
        f"many times what it costs {'; '.join(compared)} ({link('data')})."
    )
    return lines


def _factor(found: Gap) -> str:
    """A gap in log loss as a ratio of losses."""
    limits = (found.low, found.high) if found.known else (math.nan, math.nan)
    value, low, high = map(math.exp, (found.value, *limits))
    return with_interval(value, low, high)


def _times(value: float, least: float, most: float) -> str:
    if math.isnan(value):
        return f"< {number(least, 3)}"
    return f"> {number(most, 3)}" if math.isinf(value) else number(value, 2)
