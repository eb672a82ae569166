"""Fitting laws: speed beside the usual recipe, objectives, the coverage of intervals, and false claims.

    OMP_NUM_THREADS=1 python benchmarks/laws.py                 # all of it, about half an hour
    OMP_NUM_THREADS=1 python benchmarks/laws.py --part speed    # the recipe and ours in one run
    OMP_NUM_THREADS=1 python benchmarks/laws.py --part coverage --runs 25 --trials 1000
    OMP_NUM_THREADS=1 python benchmarks/laws.py --part boundary --cells 0 1 --trials 400 --json boundary.json
    OMP_NUM_THREADS=1 python benchmarks/laws.py --part claims --trials 400
    OMP_NUM_THREADS=1 python benchmarks/laws.py --part minima --trials 200

The recipe is Hoffmann et al. 2022 (arXiv 2203.15556, appendix D.3) as published: L-BFGS-B with SciPy's
defaults on (log E, log A, log B, α, β) from a grid of 4,500 starts. Its cost is measured on a random sample
of those starts and scaled up, since all of them take minutes.

The data are the 240 Chinchilla runs digitised by Besiroglu et al. 2024 where ``--data`` (or EQSCALE_DATA)
has chinchilla_epoch.csv, otherwise as many synthetic runs on their fitted surface.

``boundary`` simulates the study's own design (results/cpu) with a floor E so low that about a third of the fits end at
E = 0, and with none. ``claims`` counts comparisons of equal arms in which anything at all is claimed. ``minima`` takes
smooth curves through the losses of results/cpu2 up to 1e12 FLOPs for true, draws the runs there with the noise of their
seeds, and says how often intervals hold the true optimum; beside them a parabola through all sizes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares, minimize
from scipy.stats import norm, t

from eqscale.laws import FORMS, Fit, bootstrap, fit, nd_cost
from eqscale.laws.arms import ArmFit, fit_arms
from eqscale.laws.compare import compare_arms, log_multiplier
from eqscale.laws.contrast import log_optimum
from eqscale.laws.forms import Coefficients
from eqscale.laws.minima import combine, measured_minima, weights_at
from eqscale.laws.problem import Loss
from eqscale.laws.profile import Region, limits, surface
from eqscale.laws.render import write_json
from eqscale.laws.solver import minimise

KNOWN_OBJECTIVE = 1.01827401780060e-3
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
STARTS = {
    "E": np.arange(-1, 1.5, 0.5),
    "A": np.arange(0, 30, 5),
    "B": np.arange(0, 30, 5),
    "alpha": np.arange(0, 2.5, 0.5),
    "beta": np.arange(0, 2.5, 0.5),
}


def surface_law(N, D, E, A, B, alpha, beta):
    return E + A / N**alpha + B / D**beta


def read_data(folder: Path | None) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    places = [folder, Path(os.environ["EQSCALE_DATA"]) if "EQSCALE_DATA" in os.environ else None]
    places += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for place in filter(None, places):
        if (place / "chinchilla_epoch.csv").is_file():
            frame = pd.read_csv(place / "chinchilla_epoch.csv")
            frame = frame[frame.excluded_by_epoch == 0]
            return "Chinchilla, 240 runs", *(frame[c].to_numpy() for c in ("N", "D", "loss"))
    rng = np.random.default_rng(0)
    C = 10 ** rng.uniform(18.8, 22, 240)
    N = 0.1 * np.sqrt(C) * np.exp(rng.uniform(-2, 2, 240))
    loss = surface_law(N, C / (6 * N), **TRUTH) * np.exp(0.006 * rng.standard_normal(240))
    return "synthetic, 240 runs", N, C / (6 * N), loss


def recipe_objective(theta, log_n, log_d, log_l, delta=1e-3):
    e, a, b, alpha, beta = theta
    predicted = np.logaddexp.reduce([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)], axis=0)
    r = np.abs(predicted - log_l)
    return np.sum(np.where(r <= delta, 0.5 * r * r, delta * (r - 0.5 * delta)))


def run_recipe(N, D, loss, sample: int) -> dict[str, float]:
    """The published recipe on a random sample of its starts."""
    starts = np.array(list(itertools.product(*STARTS.values())))
    rng = np.random.default_rng(0)
    chosen = starts[rng.choice(len(starts), sample, replace=False)]
    data = np.log(N), np.log(D), np.log(loss)
    began = time.perf_counter()
    found = [minimize(recipe_objective, s, args=data, method="L-BFGS-B") for s in chosen]
    seconds = (time.perf_counter() - began) * len(starts) / sample
    values = np.array([f.fun for f in found])
    return {
        "seconds": seconds,
        "best": float(values.min()),
        "success": float(np.mean([f.success for f in found])),
        "median": float(np.median(values)),
        "starts": len(starts),
        "values": values,
    }


def median_time(call, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def speed(console: Console, folder: Path | None, sample: int) -> None:
    name, N, D, loss = read_data(folder)
    found = fit(N, D, loss)
    ours = median_time(lambda: fit(N, D, loss).verdict, 30)
    boot = median_time(lambda: bootstrap(found, resamples=4000), 3)
    recipe = run_recipe(N, D, loss, sample)
    near = float(np.mean(recipe["values"] <= found.objective * 1.01))
    table = Table("procedure", "one core", "objective", "above ours", title=name, title_justify="left")
    table.add_row(
        f"multi-start L-BFGS-B, {recipe['starts']} starts (from {sample})",
        f"{recipe['seconds']:.0f} s",
        f"{recipe['best']:.14e}",
        f"{recipe['best'] / found.objective - 1:.1e}",
    )
    table.add_row("eqscale.laws.fit", f"{1e3 * ours:.1f} ms", f"{found.objective:.14e}", "–")
    table.add_row("eqscale.laws.bootstrap, 4000 refits", f"{boot:.2f} s", "", "")
    console.print(table)
    console.print(
        f"speed-up of one fit: {recipe['seconds'] / ours:.0f}×. Of the recipe's starts "
        f"{100 * recipe['success']:.0f} % report success, {100 * near:.0f} % come within 1 % of the "
        f"minimum; their median objective is "
        f"{recipe['median'] / found.objective:.0f}× it."
    )
    if name.startswith("Chinchilla"):
        console.print(f"against the best value known: {found.objective / KNOWN_OBJECTIVE - 1:+.1e}")


def exactness(console: Console, trials: int) -> None:
    """Noise-free recovery over a wide random range."""
    rng = np.random.default_rng(1)
    worst = []
    for _ in range(trials):
        alpha, beta = np.exp(rng.uniform(np.log(0.05), np.log(1.5), 2))
        n, d = rng.uniform(6, 10, 40), rng.uniform(8, 12, 40)
        A, B = 10 ** (rng.uniform(-1.5, 1) + 8 * alpha), 10 ** (rng.uniform(-1.5, 1) + 10 * beta)
        E = rng.choice([0.05, 1.0, 3.0])
        found = fit(10**n, 10**d, surface_law(10**n, 10**d, E, A, B, alpha, beta)).params
        truth = {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta}
        worst.append(max(abs(found[k] / v - 1) for k, v in truth.items()))
    console.print(
        f"noise-free, {trials} random laws: relative error of the worst parameter, median "
        f"{np.median(worst):.1e}, largest {np.max(worst):.1e}"
    )


LAWS = {
    "plain": lambda N, D: surface_law(N, D, **TRUTH),
    "plain, E = 0": lambda N, D: surface_law(N, D, 0.0, 20.0, 60.0, 0.15, 0.17),
    "gamma": lambda N, D: 1.2 + (3e3 / N**0.5 + 5e4 / D**0.6) ** 0.5,
}
FORM_CELLS = (
    # law, runs, noise, share of outliers of five times the noise
    ("plain", 24, 0.01, 0.0), ("plain", 24, 0.006, 0.05), ("plain", 71, 0.03, 0.0), ("plain", 400, 0.01, 0.0),
    ("plain", 400, 0.01, 0.05), ("plain, E = 0", 71, 0.06, 0.0), ("gamma", 24, 0.01, 0.0), ("gamma", 71, 0.01, 0.0),
    ("gamma", 400, 0.01, 0.0),
)  # fmt: skip


def form_rates(console: Console, trials: int) -> None:
    """How often the plain form is called a misfit of runs that follow it, and of runs of a gamma law.

    Runs at random costs (log uniform over four decades) and sizes (within e² of the optimum).
    """
    title = f"the plain form called a misfit, {trials} trials"
    table = Table("law", "runs", "noise", "outliers", "misfit", "replicates known", "CPU of the test", title=title)
    for law, n, noise, outliers in FORM_CELLS:
        rng = np.random.default_rng(11)
        flagged, paired, spent = [], [], 0.0
        for _ in range(trials):
            C = 10 ** rng.uniform(17, 21, n)
            N = 0.1 * np.sqrt(C) * np.exp(rng.uniform(-2, 2, n))
            twice = n // 6  # points with a second run, of which the test may or may not know
            N[:twice], C[:twice] = N[-twice:], C[-twice:]
            D = C / (6 * N)
            size = np.where(rng.random(n) < outliers, 5.0, 1.0)
            loss = LAWS[law](N, D) * np.exp(noise * size * rng.standard_normal(n))
            found = fit(N, D, loss, points=np.arange(n))
            began = time.process_time()
            flagged.append(found.structure is not None and found.structure.rejects)
            spent += time.process_time() - began
            known = replace(found, points=None).structure
            paired.append(known is not None and known.rejects)
        rates = [f"{100 * np.mean(v):.1f} %" for v in (flagged, paired)]
        table.add_row(
            law, str(n), f"{100 * noise:g} %", f"{100 * outliers:.0f} %", *rates, f"{1e3 * spent / trials:.1f} ms"
        )
    console.print(table)


def quantities(c):
    """α, β, a and log N_opt at 1e20 and 1e23."""
    log_n = c.form.optimal_log_n(c, nd_cost(), np.log([1e20, 1e23]))
    return np.column_stack([c["alpha"], c["beta"], c.form.derived(c)["a"], log_n])


GRIDS = {20: (4, 5), 25: (5, 5), 30: (5, 6)}
"""Budgets × sizes of the simulated studies, by their number of runs."""
CHECKED = 20
"""Sets of each row that are also fitted one by one."""


def simulate(clean: Fit, losses: np.ndarray, loss_fn: str, starts: int = 12) -> list[Fit]:
    """Fits of many sets at once, (sets, n) losses at the runs of one noise-free fit.

    Each set is solved from the truth and from points around it and the lowest minimum wins: ``fit`` looks for
    basins in each set afresh, which takes 20 times as long (``coverage`` checks some sets against it).
    """
    rng = np.random.default_rng(1)
    sets, p = len(losses), len(clean.theta)
    around = clean.theta + rng.standard_normal((sets, starts, p)) * np.array([0.15, 0.2, 0.2, 0.1, 0.1])
    around[:, 0] = clean.theta
    rule = Loss(loss_fn, clean.loss.delta)
    problem = replace(clean, loss=rule)
    y = np.repeat(losses / np.exp(clean.centre.log_loss), starts, axis=0)
    theta = np.clip(around.reshape(-1, p), clean.lower, clean.upper)
    for delta in (1e-2, rule.threshold):
        theta, f, _ = minimise(problem, theta, loss=y, delta=max(delta, rule.threshold), tolerance=1e-12)
    best = f.reshape(sets, starts).argmin(1)
    theta = theta.reshape(sets, starts, p)[range(sets), best]
    return [replace(problem, theta=theta[k], observed=losses[k]) for k in range(sets)]


def coverage(console: Console, trials: int, resamples: int, grids: list[tuple[int, int]]) -> None:
    """Coverage of 95 % intervals for 20 to 30 runs with 0.6 % noise, without and with outliers."""
    names = ["α", "β", "a", "log N_opt(1e20)", "log N_opt(1e23)"]
    table = Table("runs", "outliers", "interval", *names, "width / Wald", title=f"coverage, {trials} trials")
    truth_logs = {f"log_{k}": np.log([TRUTH[k]]) for k in "AB"}
    known = {k: np.array([v]) for k, v in TRUTH.items()} | truth_logs
    truth = quantities(Coefficients(FORMS["chinchilla"], known))[0]
    singly = [lambda c, i=i: quantities(c)[:, i] for i in range(len(names))]
    checked = []
    for budgets, sizes in grids:
        C = np.repeat(10.0 ** np.linspace(17, 21, budgets), sizes)
        N = 0.1 * np.sqrt(C) * np.tile(np.geomspace(1 / 6, 6, sizes), budgets)
        D = C / (6 * N)
        clean = fit(N, D, surface_law(N, D, **TRUTH))
        for share, size in ((0.0, 1.0), (0.05, 5.0), (0.1, 8.0)):
            rng = np.random.default_rng(7)
            noise = 0.006 * rng.standard_normal((trials, len(N)))
            noise *= np.where(rng.random(noise.shape) < share, size, 1.0)
            losses = clean.observed * np.exp(noise)
            fits, squares = simulate(clean, losses, "log-huber"), simulate(clean, losses, "log-lsq")
            checked += [f.objective / fit(N, D, f.observed).objective - 1 for f in fits[:CHECKED]]
            hits, widths = ({k: [] for k in ("recommended", "model", "case")} for _ in range(2))
            for trial, (found, wald_fit) in enumerate(zip(fits, squares, strict=True)):
                wald = wald_fit.interval(quantities)
                profiled = limits(Region([surface(found)]), singly)
                kinds = {"recommended": profiled.T, "model": found.interval(quantities)}
                if resamples:
                    kinds["case"] = bootstrap(found, resamples=resamples, seed=trial).interval(quantities)
                for kind, (low, high) in kinds.items():
                    hits[kind].append((low <= truth) & (truth <= high))
                    widths[kind].append((high - low) / (wald[1] - wald[0]))
            for kind in hits:
                if hits[kind]:
                    rates = [f"{100 * v:.1f} %" for v in np.mean(hits[kind], axis=0)]
                    what = f"{100 * share:.0f} % at {size:.0f}σ" if share else "none"
                    table.add_row(str(len(N)), what, kind, *rates, f"{np.median(widths[kind]):.2f}")
    console.print(table)
    console.print("recommended: profile limits; model: Gauss–Newton t of the fit")
    console.print("Wald: Gauss–Newton t of least squares on the same runs; case: percentile bootstrap")
    console.print(
        f"{len(checked)} sets fitted by themselves: {np.mean(np.array(checked) > 1e-9):.1%} end lower than in "
        f"the batch, by at most {max(checked):.1e} (relative)"
    )


STUDY = Path(__file__).resolve().parents[1] / "results" / "cpu" / "runs.csv"
SHAPES = STUDY.parents[1] / "cpu2" / "runs.csv"
REACHES = {"top": 1e13, "3 x top": 3e13}
"""The highest budget of the study's compute grid and three times that, in executed FLOPs."""
CELLS = [(71, 0.03, True), (71, 0.03, False), (71, 0.06, True), (71, 0.06, False), (24, 0.01, True), (24, 0.01, False)]
"""Runs an arm, noise, and whether E > 0."""
NEAR = 0.43
"""E in standard errors: a third of the fits end at E = 0."""


class Truth:
    """A law at an arm's runs, and what oracles that know the noise would say."""

    def __init__(self, arm: ArmFit, runs: int, noise: float, floor: bool):
        self.arm, self.noise = arm, noise
        keep = np.sort(np.random.default_rng(5).permutation(arm.fit.n)[:runs])
        self.N, self.D = arm.N[keep], arm.D[keep]
        params = arm.fit.params | {"E": 0.0}
        clean = fit(self.N, self.D, surface_law(self.N, self.D, **params))
        theta = clean.form.to_internal(params, clean.centre)
        jac = clean.jacobian_at(theta)
        if floor:
            params["E"] = NEAR * noise * float(np.sqrt(np.linalg.inv(jac @ jac.T)[0, 0])) * clean.unit
            theta = clean.form.to_internal(params, clean.centre)
            jac = clean.jacobian_at(theta)
        information = jac @ jac.T / noise**2
        self.told = np.zeros((5, 5))
        """Covariance of an oracle that is told whether E = 0; ``untold`` of one that isn't."""
        free = np.arange(0 if floor else 1, 5)
        self.told[np.ix_(free, free)] = np.linalg.inv(information[np.ix_(free, free)])
        self.untold = np.linalg.inv(information)
        self.clean, self.theta = clean, theta
        self.mean = surface_law(self.N, self.D, **params)
        self.coefficients = clean.form.to_natural(theta[None], clean.centre)

    def draw(self, rng: np.random.Generator) -> Fit:
        return fit(self.N, self.D, self.mean * np.exp(self.noise * rng.standard_normal(len(self.mean))))

    def around(self, i: int) -> Coefficients:
        """Coefficients a little above and below the truth in one internal parameter."""
        return self.clean.form.to_natural(
            self.theta + 1e-5 * np.eye(5)[i] * np.array([[1.0], [-1.0]]), self.clean.centre
        )


def oracle_se(truths: list[Truth], quantity: Callable[..., np.ndarray], side: int = 0) -> float:
    """Standard error by the delta method at the truth, with least squares and E fixed if it is zero.

    With ``side`` 1 (or -1) of one who doesn't know that E is zero, only that it isn't negative, towards larger
    (smaller) values: there a law with E > 0 explains the runs as well.
    """
    variance = 0.0
    for k, truth in enumerate(truths):
        slope = []
        for i in range(5):
            laws = [t.coefficients.each(lambda v: np.repeat(v, 2)) for t in truths]
            laws[k] = truth.around(i)
            high, low = quantity(*laws)
            slope.append((high - low) / 2e-5)
        rises = np.array(slope) @ truth.untold[:, 0]  # with E
        variance += np.array(slope) @ (truth.untold if rises * side > 0 else truth.told) @ np.array(slope)
    return float(np.sqrt(variance))


def least_width(truths: list[Truth], quantity: Callable[..., np.ndarray]) -> float:
    """Lower bound of the mean width of any interval that holds the truth in 95 % whatever E is (Pratt 1961).

    The integral, over all values, of the chance that the best test of each at 5 % keeps it, in the Gaussian limit.
    """
    z = norm.isf(0.05)
    return (z * norm.cdf(z) + norm.pdf(z)) * sum(oracle_se(truths, quantity, side) for side in (-1, 1))


def flat(quantity: Callable) -> Callable:
    return lambda c: np.asarray(quantity(c)).reshape(len(c["E"]), -1)[:, 0]


def boundary(console: Console, trials: int, cells: list[int]) -> list[dict]:
    """Coverage and width of the recommended 95 % intervals at the study's design."""
    runs = pd.read_csv(STUDY).query("status == 'finished' and arm in ('gatr', 'transformer')")
    arms = fit_arms(runs, cost="flops_executed", resamples=0)
    records = []
    for runs_an_arm, noise, floor in (CELLS[i] for i in cells):
        truths = {name: Truth(arm, runs_an_arm, noise, floor) for name, arm in arms.items()}
        pair = [arms["gatr"], arms["transformer"]]
        targets: dict[tuple[str, str], tuple[list[str], Callable]] = {}
        for name, arm in arms.items():
            own = {"E": itemgetter("E"), "alpha": itemgetter("alpha"), "beta": itemgetter("beta")}
            own["a"] = lambda c: c.form.derived(c)["a"]
            own |= {f"loss {k}": flat(log_optimum(arm.cost, C, "loss")) for k, C in REACHES.items()}
            targets |= {(name, what): ([name], q) for what, q in own.items()}
        for reach, C in REACHES.items():
            targets["both", f"multiplier {reach}"] = ([a.name for a in pair], log_multiplier(*pair, C))
        found: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in targets}
        at_zero, rng = [], np.random.default_rng(11)
        for _ in range(trials):
            fits = {name: truth.draw(rng) for name, truth in truths.items()}
            at_zero += [law.params["E"] == 0.0 for law in fits.values()]
            surfaces = {name: surface(law) for name, law in fits.items()}
            for members in ({"gatr"}, {"transformer"}, set(arms)):
                mine = [key for key, (names, _) in targets.items() if set(names) == members]
                region = Region([surfaces[name] for name in targets[mine[0]][0]])
                for key, pairs in zip(mine, limits(region, [targets[key][1] for key in mine]), strict=True):
                    found[key].append(pairs)
        share = float(np.mean(at_zero))
        title = (
            f"{runs_an_arm} runs an arm, {100 * noise:.0f} % noise, E {'> 0' if floor else '= 0'}; {trials} trials, "
        )
        title += f"{100 * share:.0f} % of the fits at E = 0"
        table = Table("arm", "quantity", "covered", "too high", "too low", "no upper limit", "width / oracle",
                      "least possible", title=title, title_justify="left")  # fmt: skip
        k = Loss().delta / noise  # what the default loss loses against least squares (Huber & Ronchetti 2009, eq. 4.53)
        square = 2 * norm.cdf(k) - 1 - 2 * k * norm.pdf(k) + 2 * k * k * norm.cdf(-k)
        loses = np.sqrt(square) / (2 * norm.cdf(k) - 1)
        for key, (names, quantity) in targets.items():
            involved = [truths[name] for name in names]
            true = float(quantity(*(t.coefficients for t in involved))[0])
            low, high = np.array(found[key]).T
            se = oracle_se(involved, quantity)
            width = float(np.median(high - low)) / (2 * 1.96)
            wide = width / se if se > 1e-12 else np.nan
            least = least_width(involved, quantity) / (2 * 1.96 * se) / loses if se > 1e-12 and not floor else np.nan
            above, below = float(np.mean(low > true + 1e-12)), float(np.mean(high < true - 1e-12))
            record = {
                "runs": runs_an_arm, "noise": noise, "E > 0": floor, "arm": key[0], "quantity": key[1],
                "trials": trials,
                "covered": 1 - above - below, "too high": above, "too low": below,
                "no upper limit": float(np.mean(np.isinf(high))), "width over oracle": wide / loses,
                "width over least-squares oracle": wide, "least width over oracle": least, "at E = 0": share,
            }  # fmt: skip
            records.append(record)
            shares = [f"{100 * record[k]:.1f} %" for k in ("covered", "too high", "too low", "no upper limit")]
            table.add_row(*key, *shares, f"{wide / loses:.2f}", f"{least:.2f}")
        console.print(table)
    console.print(
        "oracle: Gauss–Newton interval at the truth of a fit with the default loss (log-Huber 1e-3) that knows the "
        "noise and whether E = 0; least possible: of the mean width of intervals that cover whatever E is (Pratt "
        "1961), over that of the same oracle, where E = 0"
    )
    return records


def equal_arms(rng: np.random.Generator, floor: float) -> pd.DataFrame:
    """Two arms of 24 runs with one law and 1 % noise."""
    C = np.tile(np.repeat(10.0 ** np.linspace(17, 21, 4), 6), 2)
    N = 0.1 * np.sqrt(C) * np.tile(np.geomspace(1 / 8, 8, 6), 8)
    frame = pd.DataFrame({"arm": np.repeat(["x", "y"], 24), "N": N, "D": C / (6 * N), "C": C})
    frame["loss"] = surface_law(N, frame["D"], floor, 300, 900, 0.35, 0.37) * np.exp(0.01 * rng.standard_normal(48))
    return frame


def claims(console: Console, folder: Path | None, trials: int) -> list[dict]:
    """How often anything is claimed of arms that are equal."""
    name, N, D, loss = read_data(folder)
    real = pd.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss})

    def halves(rng: np.random.Generator) -> pd.DataFrame:
        return real.assign(arm=np.where(rng.permutation(len(real)) % 2, "x", "y"))

    table = Table("equal arms", "anything claimed", "a crossing", title=f"{trials} comparisons", title_justify="left")
    records = []
    kinds = {
        "one law, E = 1, 24 runs, 1 % noise": lambda rng: equal_arms(rng, 1.0),
        "one law, E = 0, 24 runs, 1 % noise": lambda rng: equal_arms(rng, 0.0),
        f"random halves of {name}": halves,
    }
    for kind, make in kinds.items():
        claimed, crossed = [], []
        for trial in range(trials):
            arms = fit_arms(make(np.random.default_rng(trial)), resamples=200)
            found = compare_arms(arms["x"], arms["y"])
            ahead = [m.ahead or m.compute[1] > 1 or m.compute[2] < 1 for m in found.multipliers]
            claimed.append(any(ahead) or bool(found.crossing.better_below or found.crossing.better_above))
            crossed.append(found.crossing.C is not None)
        records.append({"arms": kind, "trials": trials, "claimed": np.mean(claimed), "crossing": np.mean(crossed)})
        table.add_row(kind, f"{np.mean(claimed):.1%}", f"{np.mean(crossed):.1%}")
    console.print(table)
    return records


def curve(shape: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Log loss over log size: a floor, a term that falls and one that rises."""
    floor, falling, rate, rising, growth = shape
    with np.errstate(over="ignore"):
        return np.logaddexp(np.logaddexp(floor, falling - np.exp(rate) * x), rising + np.exp(growth) * x)


def through(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The curve through mean log losses of sizes."""
    rng = np.random.default_rng(1)
    starts = (np.array([-2.5, -2.5, -0.5, -3.0, 0.0]) + 0.7 * rng.normal(size=5) for _ in range(20))
    found = (least_squares(lambda p: curve(p, x) - y, start) for start in starts)
    return min(found, key=lambda fitted: fitted.cost).x


def parabolas(cells: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, float]]:
    """Lowest loss of a parabola through all log losses (x, y) of each budget, and half its 95 % interval."""
    fits = [(x - x.mean(), np.polyfit(x - x.mean(), y, 2), y) for x, y in cells]
    df = sum(len(x) - 3 for x, _, _ in fits)
    scatter = np.sqrt(sum(((y - np.polyval(c, x)) ** 2).sum() for x, c, y in fits) / df)
    out = []
    for x, c, _ in fits:
        at = np.clip(-c[1] / (2 * c[0]), x.min(), x.max())
        row = np.vander([at], 3)[0] @ np.linalg.pinv(np.vander(x, 3))
        out.append((float(np.polyval(c, at)), float(t.ppf(0.975, df) * scatter * np.linalg.norm(row))))
    return out


def minima(console: Console, trials: int) -> None:
    """Bias and coverage of measured optima on the shapes of a study."""
    runs = pd.read_csv(SHAPES).query("budget < 2e12 and loss > 0")
    for alone in (False, True):
        title = f"{'one run' if alone else 'all runs'} of each size, {trials} trials: bias of the lowest loss, coverage"
        table = Table("arm", "FLOPs", "noise", "bias", "loss covered", "size covered", "parabola: bias", "loss covered",
                      title=title, title_justify="left")  # fmt: skip
        for name, own in runs.groupby("arm"):
            cells, truths = [], []
            for budget, cell in own.groupby("budget"):
                log_loss = np.log(cell.loss).groupby(np.log(cell.N))
                means = log_loss.mean()
                x0, noise = float(means.index.to_numpy().mean()), float(np.sqrt(log_loss.var().mean()))
                shape = through(means.index.to_numpy() - x0, means.to_numpy())
                x = means.index.to_numpy() if alone else np.log(cell.N.to_numpy())
                grid = np.linspace(x.min(), x.max(), 2001)
                on_grid = curve(shape, grid - x0)
                cells.append((float(budget), x, curve(shape, x - x0), noise))
                truths.append((on_grid.min(), grid[on_grid.argmin()]))
            N, clean = (np.exp(np.concatenate([cell[i] for cell in cells])) for i in (1, 2))
            budget = np.repeat([cell[0] for cell in cells], [len(cell[1]) for cell in cells])
            held_law = {"E": 0.0, "A": 1.0, "B": 1.0, "alpha": 0.5, "beta": 0.5}  # measured optima need none
            law = fit(N, budget / (6 * N), clean, fix=held_law)
            arm = ArmFit(str(name), law, None, nd_cost(), budget, budget)
            rng, bias, held = np.random.default_rng(5), np.zeros((len(cells), 2)), np.zeros((len(cells), 3))
            for trial in range(trials):
                drawn = [(x, y + noise * rng.normal(size=len(x))) for _, x, y, noise in cells]
                loss = np.exp(np.concatenate([y for _, y in drawn]))
                found = measured_minima(replace(arm, fit=replace(arm.fit, observed=loss)), resamples=200, seed=trial)
                assert found is not None
                for i, ((best, at), (vertex, half)) in enumerate(zip(truths, parabolas(drawn), strict=True)):
                    one = weights_at(found, found.cost[[i]], np.ones(1))
                    lowest, size = combine([(found, found.loss, one)]), combine([(found, found.N, one)])
                    bias[i] += lowest.value - best, vertex - best
                    held[i] += lowest.low < best < lowest.high, size.low < at < size.high, abs(vertex - best) < half
            for (b, _, _, noise), (own_bias, other_bias), (loss_held, size_held, other_held) in zip(
                cells, 100 * bias / trials, held / trials, strict=True
            ):
                table.add_row(str(name), f"{b:.0e}", f"{noise:.1%}", f"{own_bias:+.1f} %", f"{loss_held:.0%}",
                              f"{size_held:.0%}", f"{other_bias:+.1f} %", f"{other_held:.0%}")  # fmt: skip
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("speed", "exact", "form", "coverage", "boundary", "claims", "minima", "all")
    parser.add_argument("--part", choices=parts, default="all")
    parser.add_argument("--data", type=Path, help="folder with chinchilla_epoch.csv")
    parser.add_argument("--sample", type=int, default=200, help="starts of the recipe that are run")
    parser.add_argument("--trials", type=int, default=1000, help="data sets per row of the coverage table")
    parser.add_argument(
        "--runs", type=int, choices=GRIDS, help="only this row group of the coverage table (default: all)"
    )
    parser.add_argument("--resamples", type=int, default=0, help="also cover the case bootstrap with so many refits")
    parser.add_argument("--cells", type=int, nargs="+", default=list(range(len(CELLS))), help="which rows of CELLS")
    parser.add_argument("--json", type=Path, help="write the figures of boundary and claims")
    args = parser.parse_args()
    figures = {}
    console = Console(width=130)
    if args.part in ("speed", "all"):
        speed(console, args.data, args.sample)
    if args.part in ("exact", "all"):
        exactness(console, 300)
    if args.part in ("form", "all"):
        form_rates(console, args.trials)
    if args.part in ("coverage", "all"):
        grids = [GRIDS[args.runs]] if args.runs else list(GRIDS.values())
        coverage(console, args.trials, args.resamples, grids)
    if args.part in ("boundary", "all"):
        figures["boundary"] = boundary(console, args.trials, args.cells)
    if args.part in ("claims", "all"):
        figures["claims"] = claims(console, args.data, args.trials)
    if args.part in ("minima", "all"):
        minima(console, args.trials)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
