"""Power of the report's checks: how often each holds, fails or stays open at a planned study.

    OMP_NUM_THREADS=1 python benchmarks/power.py                      # 20 draws of each case, minutes
    OMP_NUM_THREADS=1 python benchmarks/power.py --draws 100 --out results/cpu2/power
    OMP_NUM_THREADS=1 python benchmarks/power.py --shared 0.3         # part of the noise is common to a budget

Draws loss tables at the runs of a compute grid and a data grid from laws that are assumed true, with log-normal noise
as large as that of results/cpu, and lets ``eqscale.report.conclusions`` decide each of them. The cases:

- ``measured``: the laws and the cost of repeated data of results/cpu. An arm that it lacks has those of its stand-in.
- ``reproduced``: all claims are true on executed FLOPs. Losses of both arms are power laws, a constant factor apart;
  the built-in arm wants fewer parameters, which ends towards the top; augmentation leaves no gap.
- ``contrary``: all are false. Exponents shrink; the built-in arm is behind at the bottom and ahead at the top, wants
  more parameters, ever fewer of them; repeated data cost it what they cost the plain arm, and vice versa.
- ``useless``: ``measured``, but augmentation does nothing: the case in which the claims about it are false.

Whether a claim is true in a case on an axis is what its laws, or for data the check, say of a table without noise.
Writes checks.csv (shares of draws by check) and ratios.csv (measured optima: who is ahead at each budget, and how wide
the interval of the ratio is).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.optimize import least_squares

from eqscale.arms import get_arm
from eqscale.laws import FORMS, fit_cost
from eqscale.laws.arms import ArmFit, fit_arms
from eqscale.laws.axes import AXES
from eqscale.laws.cost import CostModel
from eqscale.laws.forms import Coefficients
from eqscale.laws.frontier import frontier_values, law_value
from eqscale.laws.minima import loss_ratio
from eqscale.report import analysis, checks
from eqscale.report.conclusions import conclude
from eqscale.report.data_grid import REPEATED, measured_grid
from eqscale.report.parts import UNIQUE, read_study
from eqscale.report.roles import read_roles
from eqscale.study.estimate import Estimator
from eqscale.study.grid import compute_grid, data_grid, expected_batch
from eqscale.study.presets import COMPUTE_GRIDS, DATA_GRIDS, ComputeGrid, DataGrid
from eqscale.study.simulate import measured_throughput
from eqscale.tasks import get_task
from eqscale.training.spec import RunSpec

KNOWN = Path(__file__).resolve().parents[1] / "results" / "cpu"
TIMED = KNOWN.parent / "cpu2" / "learning_rate" / "check_runs.csv"
"""Runs of all arms with the present code, which say how long the planned ones will take."""
CASES = ("measured", "reproduced", "contrary", "useless")
STAND_IN = {"transformer_local": "transformer_aligned", "gatr_slim": "gatr", "transformer_aug": "transformer"}
"""Arms that the compute grid of results/cpu lacks -> the one whose law and noise they are given."""
BASE = "transformer"
"""The arm that the built-in ones are compared with."""
AHEAD, FEWER = {"reproduced": (1.6, 1.6), "contrary": (0.85, 1.2)}, {"reproduced": (0.4, 0.8), "contrary": (1.6, 1.3)}
"""At the lowest and the highest budget: loss of the base over that of a built-in arm; its N_opt over the base's."""
BEND = {"reproduced": 1.0, "contrary": 0.55}
"""Local exponent of L_opt in the top third of the budgets over that in the bottom third."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is assumed true."""

    laws: Mapping[str, Coefficients]
    """By arm, of the compute grid; data that are not repeated follow them too."""
    repeated: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """By arm, log of budget over systems (epochs, but for a factor) and the log loss that it adds, as measured."""
    shift: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Log loss that an arm has more than its law in the data grid."""
    only_data: bool = False
    """Whether the compute grid is that of another case."""


def plan_table(specs: list[RunSpec], preset: ComputeGrid | DataGrid, seconds: Estimator) -> pd.DataFrame:
    """A run table without losses."""
    task, rows = get_task(preset.task), []
    for spec in specs:
        arm, batch = get_arm(spec.arm), expected_batch(preset, spec.batch_size)
        N, D = arm.parameters(spec.size, task), spec.steps * batch.tokens
        epochs = spec.steps * spec.batch_size / (spec.train_systems * task.samples_per_system)
        nominal = spec.steps * arm.flops(spec.size, task).nominal.total(batch.tokens, batch.pairs)
        rows.append(
            {"arm": spec.arm, "role": str(arm.role), "control_of": None, "status": "finished", "budget": spec.budget,
             "seed": spec.seed, "N": N, "D": D * (1 + 1e-4 * spec.seed),  # another order has other token counts
             "flops_executed": spec.budget, "flops_nominal": nominal, UNIQUE: spec.train_systems, "epochs": epochs,
             "seconds": seconds.throughput(spec.arm).training(spec), "unique_tokens": D / max(epochs, 1.0)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def chinchilla(params: Mapping[str, float]) -> Coefficients:
    """One law from its public parameters."""
    known = {name: np.array([float(value)]) for name, value in params.items()}
    return Coefficients(FORMS["chinchilla"], known | {f"log_{k}": np.log(known[k]) for k in "AB"})


def optima(law: Coefficients, cost: CostModel, C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log N_opt and log L_opt at costs (k,), each (k,)."""
    log_n, _, log_loss = frontier_values(law, cost, C)
    return log_n[0], log_loss[0]


def law_through(
    start: Coefficients, cost: CostModel, C: np.ndarray, log_n: np.ndarray, log_loss: np.ndarray, bend: float
) -> Coefficients:
    """The law with these optima at the two costs C and this change of its exponent between them."""
    thirds = np.geomspace(*C, 4)
    scale = np.exp(log_loss[1])

    def law(x: np.ndarray) -> Coefficients:
        A, B, alpha, beta = np.exp(x[:4])
        E = scale * x[4] if bend < 1 else 0.0
        return chinchilla({"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta})

    def off(x: np.ndarray) -> np.ndarray:
        n, loss = optima(law(x), cost, thirds)
        bent = np.log((loss[2] - loss[3]) / (loss[0] - loss[1]) / bend) if bend < 1 else x[4]
        return np.array([*(n[[0, 3]] - log_n), *(loss[[0, 3]] - log_loss), bent])

    first = [float(np.log(start[name][0])) for name in ("A", "B", "alpha", "beta")]
    limits = ([-20, -20, -4, -4, 0], [20, 20, 1.5, 1.5, 0.99])
    found = least_squares(off, [*first, 0.3 if bend < 1 else 0.0], bounds=limits, x_scale=[1, 1, 0.3, 0.3, 0.3])
    if np.abs(found.fun).max() > 1e-3:
        raise SystemExit(
            f"no law has the optima {np.exp(log_n)}, losses {np.exp(log_loss)} and bend {bend}: {found.fun}"
        )
    return law(found.x)


def make_cases(compute: pd.DataFrame, data: pd.DataFrame) -> dict[str, Case]:
    """The cases of the module's docstring for the arms of two planned tables."""
    study = read_study(KNOWN)
    fits = fit_arms(study.part("compute"), cost="flops_executed", budget="budget", resamples=0)
    grid = measured_grid(study.part("data_grid"), study.wording.unit.many)
    arms = list(dict.fromkeys([*compute["arm"], *data["arm"]]))
    built_in = [arm for arm in arms if get_arm(arm).role == "build_in"]
    laws = {arm: chinchilla(fits[STAND_IN.get(arm, arm)].fit.params) for arm in arms}
    repeated = {}
    for arm, own in grid.levels.sort_values("epochs").groupby("arm"):
        fresh, many = own[own["epochs"] < REPEATED], own[own["epochs"] >= REPEATED]
        known = pd.concat([fresh.tail(1), many])
        repeated[arm] = (
            np.log(known["budget"] / known[UNIQUE]),
            np.array([0.0, *(many["log_loss"] - fresh["log_loss"].mean())]),
        )
    repeated = {arm: repeated.get(arm, repeated.get(STAND_IN.get(arm, arm))) for arm in arms}
    cases = {"measured": Case(laws, repeated)}
    cases["useless"] = Case(laws, repeated | {"transformer_aug": repeated[BASE]}, only_data=True)
    C = np.array([compute["budget"].min(), compute["budget"].max()])
    both = pd.concat([compute, data])
    costs = {arm: fit_cost(own["N"], own["D"], own["budget"]) for arm, own in both.groupby("arm")}
    for name, bend in BEND.items():
        log_n, log_loss = optima(laws[BASE], costs[BASE], C)
        own = {arm: law_through(laws[BASE], costs[arm], C, log_n, log_loss, bend) for arm in arms}
        for arm in built_in:
            target = log_n + np.log(FEWER[name]), log_loss - np.log(AHEAD[name])
            own[arm] = law_through(laws[BASE], costs[arm], C, *target, bend)
        if name == "reproduced":
            plain, best = (optima(own[arm], costs[arm], C)[1][1] for arm in (BASE, built_in[-1]))
            as_built_in = dict.fromkeys([*built_in, "transformer_aug"], repeated["gatr"])
            cases[name] = Case(own, repeated | as_built_in, {"transformer_aug": best - plain})
        else:
            cases[name] = Case(own, repeated | {BASE: repeated["gatr"]} | dict.fromkeys(built_in, repeated[BASE]))
    return cases


def mean_log_loss(case: Case, table: pd.DataFrame, repeats: bool) -> np.ndarray:
    """Log loss of each run without noise, (n,)."""
    out = np.empty(len(table))
    for arm, at in table.groupby("arm").indices.items():
        own = table.iloc[at]
        out[at] = np.log(law_value(case.laws[arm], *np.log(own[["N", "D"]].to_numpy(float)).T)[0])
        if repeats:
            out[at] += case.shift.get(arm, 0.0) + np.interp(np.log(own["budget"] / own[UNIQUE]), *case.repeated[arm])
    return out


def noise_of(table: pd.DataFrame, part: str) -> pd.Series:
    """Standard deviation between seeds of each run's arm in a part of results/cpu."""
    noise = analysis.seed_noise(read_study(KNOWN).part(part))
    known = {arm: analysis.pooled_noise(noise, arm)[0] for arm in noise["arm"].unique()}
    return table["arm"].map(lambda arm: known.get(arm, known.get(STAND_IN.get(arm, arm))))


def with_losses(
    table: pd.DataFrame, log_loss: np.ndarray, sd: np.ndarray, shared: float, rng: np.random.Generator
) -> pd.DataFrame:
    """A run table with noise, a share of whose variance is common to the runs of an arm at one budget."""
    group = table.groupby(["arm", "budget"]).ngroup().to_numpy()
    common = rng.standard_normal(group.max() + 1)[group]
    noise = np.sqrt(1 - shared) * rng.standard_normal(len(table)) + np.sqrt(shared) * common
    return table.assign(loss=np.exp(log_loss + sd * noise))


def vote(text: str) -> str:
    """Outcome at the end of a finding's text."""
    found = re.search(r"\(([a-z ]+)\)$", text)
    return found.group(1) if found else ""


class Decided:
    """What the report says of one draw."""

    def __init__(self, compute: pd.DataFrame, data: pd.DataFrame, only_data: bool):
        roles = read_roles(pd.concat([compute.assign(part="compute"), data.assign(part="data_grid")]))
        self.arms: dict[str, dict[str, ArmFit]] = {}
        if not only_data:
            fitted, _ = analysis.fit_every_arm(compute)
            self.arms = {
                axis: {name: analysis.on_axis(a, compute, axis) for name, a in fitted.items()} for axis in AXES
            }
        self.minima = {axis: analysis.find_minima(group, axis) for axis, group in self.arms.items()}
        self.roles = roles
        self.conclusions = conclude(roles, self.arms, self.minima, measured_grid(data, "scenes"))

    def outcomes(self) -> dict[tuple, tuple[str, str, str]]:
        """By conclusion, arm, axis and claim: outcome, and that of the measured optima and of the laws alone."""
        return {
            (c.number, c.arm, c.axis, check.claim): (check.outcome, vote(check.measured), vote(check.by_law))
            for c in self.conclusions
            for check in c.checks
            if self.arms or not c.axis
        }

    def truths(self) -> dict[tuple, str]:
        """Whether each claim is true, from a draw almost without noise: by the laws, for data by the check."""
        found = {key: outcome for key, (outcome, *_) in self.outcomes().items()}
        for arm, axis in itertools.product(self.roles.built_in, self.arms):
            by_laws = checks.by_laws((arm, self.roles.baseline), self.arms[axis], AXES[axis].unit)
            for number, findings in by_laws.items():
                for claim, finding in zip(checks.CLAIMS[number], findings, strict=True):
                    # a law without a vote is a power law by construction: E = 0 is true here
                    found[number, arm, axis, claim] = {checks.NO_VOTE: "holds"}.get(finding.outcome, finding.outcome)
        return {key: {"holds": "true", "fails": "false"}.get(outcome, "") for key, outcome in found.items()}

    def ratios(self) -> dict[tuple, tuple[float, float, float]]:
        """By pair of arms and budget: log ratio of the measured optima's losses with the limits of its interval."""
        out = {}
        for one, two in itertools.combinations(self.minima.get("executed", {}).values(), 2):
            for C in np.intersect1d(one.cost, two.cost):
                found = loss_ratio(one, two, float(C))
                out[one.name, two.name, float(C)] = (found.value, found.low, found.high)
        return out


def simulate(
    cases: Mapping[str, Case], compute: pd.DataFrame, data: pd.DataFrame, args: argparse.Namespace
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares of draws by check, and by pair and budget."""
    sd = [args.noise * noise_of(table, part).to_numpy() for table, part in ((compute, "compute"), (data, "data_grid"))]
    by_check, by_pair = [], []
    for name, case in cases.items():
        rng = np.random.default_rng(1)

        def draw(factor: float, case: Case = case, rng: np.random.Generator = rng) -> Decided:
            tables = ((compute, False, sd[0]), (data, True, sd[1]))
            drawn = [
                with_losses(t, mean_log_loss(case, t, repeats), factor * s, args.shared, rng)
                for t, repeats, s in tables
            ]
            return Decided(*drawn, case.only_data)

        sure = draw(1e-3)
        truths, true_ratios = sure.truths(), sure.ratios()
        counts: dict[tuple, list[Counter]] = {key: [Counter(), Counter(), Counter()] for key in truths}
        ratios: dict[tuple, list] = {key: [] for key in true_ratios}
        for _ in range(args.draws):
            found = draw(1.0)
            for key, votes in found.outcomes().items():
                for counter, outcome in zip(counts[key], votes, strict=True):
                    counter[outcome] += 1
            for key, limits in found.ratios().items():
                ratios[key].append(limits)
        for (number, arm, axis, claim), (all_, own, law) in counts.items():
            by_check.append(
                {"case": name, "conclusion": number, "arm": arm, "axis": axis, "claim": claim,
                 "true": truths[number, arm, axis, claim]}
                | {what: all_[what] / args.draws for what in ("holds", "fails", "open")}
                | {f"measured {what}": own[what] / args.draws for what in ("holds", "fails", "open")}
                | {f"laws {what}": law[what] / args.draws for what in ("holds", "fails", "open", checks.NO_VOTE)}
            )  # fmt: skip
        for (one, two, C), limits in ratios.items():
            value, low, high = np.array(limits).T
            by_pair.append(
                {"case": name, "arm": one, "other": two, "budget": C, "ratio": np.exp(true_ratios[one, two, C][0]),
                 "ahead": np.mean(low > 0), "behind": np.mean(high < 0), "of draws": len(value) / args.draws,
                 "median upper over lower limit": np.exp(np.median(high - low))}
            )  # fmt: skip
    return pd.DataFrame(by_check), pd.DataFrame(by_pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    presets = sorted(COMPUTE_GRIDS.keys() & DATA_GRIDS)
    add("--preset", default="cpu", choices=presets, help="whose grids (default: %(default)s)")
    add("--cases", nargs="+", default=CASES, choices=CASES)
    add("--only-data", action="store_true", help="conclusion 1 alone: seconds instead of minutes")
    add("--noise", type=float, default=1.0, help="over that of results/cpu")
    add("--shared", type=float, default=0.0, help="share of its variance that is common to an arm's runs at a budget")
    add("--draws", type=int, default=20)
    add("--resamples", type=int, default=100, help="of each bootstrap; a report takes 1000")
    add("--out", type=Path, help="folder of checks.csv and ratios.csv")
    args = parser.parse_args()
    if args.draws < 1 or not args.noise > 0 or not 0 <= args.shared <= 1:
        parser.error("--draws must be at least 1, --noise positive, --shared from 0 to 1")
    analysis.RESAMPLES = args.resamples
    grid, on_data = COMPUTE_GRIDS[args.preset], DATA_GRIDS[args.preset]
    seconds, _ = measured_throughput(TIMED)
    compute, data = (plan_table(s, p, seconds) for s, p in ((compute_grid(grid), grid), (data_grid(on_data), on_data)))
    console = Console(width=200)
    hours = ", ".join(f"{what} grid {len(t)} runs, {t['seconds'].sum() / 3600:.1f} h" for what, t in
                      (("compute", compute), ("data", data)))  # fmt: skip
    console.print(f"planned: {hours} of one worker, without evaluations")
    began = time.process_time()
    cases = {name: case for name, case in make_cases(compute, data).items() if name in args.cases}
    if args.only_data:
        cases = {name: dataclasses.replace(case, only_data=True) for name, case in cases.items()}
    by_check, by_pair = simulate(cases, compute, data, args)
    console.print(f"{args.draws} draws of {len(cases)} cases: {time.process_time() - began:.0f} s of CPU")
    for frame, name in ((by_check, "checks"), (by_pair, "ratios")):
        console.print(frame.round(2).to_string(index=False), soft_wrap=True)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            frame.to_csv(args.out / f"{name}.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
