"""Does the recipe of every arm fit a task? Runs with the recipe's learning rate, and with less and more of it.

    python benchmarks/rates.py plan.jsonl --preset forces-cpu --budgets 1e11 1e12    # the same runs for every arm
    eqscale train plan.jsonl --records rates.jsonl                                   # --shard: on several machines
    python benchmarks/rates.py --table rates.jsonl --out results/forces/rates

Plans a size in the middle of the compute grid's at each budget, with every factor of the recipe's rate and one seed.
The table says how far the recipe's pick ends above the best rate tried; --out also writes the runs.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from eqscale.arms import get_arm
from eqscale.errors import InputError
from eqscale.laws.render import markdown_table
from eqscale.storage import write_text
from eqscale.study.alone import Planned, write_plan
from eqscale.study.grid import choose_sizes, data_spec, design_run
from eqscale.study.presets import COMPUTE_GRIDS, ComputeGrid, overridden
from eqscale.study.records import read_records
from eqscale.tasks import get_task
from eqscale.training.spec import RunRecord, RunSpec


def plan(preset: ComputeGrid, factors: list[float]) -> list[RunSpec]:
    """Arms x budgets x factors, the cheapest budget first."""
    found = []
    for budget in sorted(preset.budgets):
        for name in preset.arms:
            arm = get_arm(name)
            size = choose_sizes(arm, budget, preset.sizes_per_budget, preset)[preset.sizes_per_budget // 2]
            rate = design_run(arm, size, budget, preset, preset.seeds[0]).learning_rate
            found += [
                design_run(arm, size, budget, preset, preset.seeds[0], learning_rate=factor * rate)
                for factor in factors
            ]
    return found


def factor_of(spec: RunSpec) -> float:
    """A run's learning rate over that of its arm's recipe on the task, with the same optimiser.

    Raises InputError if the arm has no recipe with it.
    """
    arm = get_arm(spec.arm)
    recipe = arm.recipe_with(spec.optimizer)
    if recipe is None:
        raise InputError(f"run {spec.name}: {spec.arm} has no recipe with {spec.optimizer}")
    parameters = arm.parameters(spec.size, get_task(spec.task))
    return spec.learning_rate / recipe.on(spec.task).learning_rate(parameters, spec.steps, spec.batch_size)


def table(records: list[RunRecord]) -> str:
    """A row for each arm, size and budget: the loss, geometric mean over seeds, at each factor of the recipe's rate."""
    seeds: dict[tuple[float, str, str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        spec = record.spec
        seeds[spec.budget, spec.arm, str(spec.size), spec.batch_size][round(factor_of(spec), 2)].append(record.loss)
    losses = {
        row: {factor: math.exp(statistics.mean(map(math.log, values))) for factor, values in own.items()}
        for row, own in seeds.items()
    }
    factors = sorted({factor for own in losses.values() for factor in own})
    rows = []
    for (budget, arm, size, batch), own in sorted(losses.items()):
        above = f"{100 * (own[1.0] / min(own.values()) - 1):.1f} %" if 1.0 in own else "–"
        cells = [f"{own[factor]:.4f}" if factor in own else "–" for factor in factors]
        rows.append([f"{budget:.0e}", arm, size, str(batch), *cells, above])
    return markdown_table(
        ["budget", "arm", "size", "batch", *(f"{factor:g} x rate" for factor in factors), "recipe above the best"], rows
    )


def runs_csv(records: list[RunRecord]) -> str:
    """The runs, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run_id", "arm", "budget", "size", "batch_size", "steps", "seed", "learning_rate", "factor", "loss"]
    )
    for record in sorted(records, key=lambda record: (record.spec.budget, record.spec.arm, record.spec.learning_rate)):
        spec = record.spec
        own = [spec.run_id, spec.arm, f"{spec.budget:g}", spec.size, spec.batch_size, spec.steps, spec.seed]
        writer.writerow([*own, spec.learning_rate, f"{factor_of(spec):.3g}", record.loss])
    return text.getvalue()


def _budget(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} FLOPs: must be positive and finite")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?", type=Path, help="file to write the plan to")
    parser.add_argument("--preset", choices=COMPUTE_GRIDS, default="cpu", help="compute grid whose runs are varied")
    parser.add_argument("--arms", nargs="+", help="default: the preset's")
    parser.add_argument("--budgets", nargs="+", type=_budget, help="default: the preset's")
    parser.add_argument("--factors", nargs="+", type=float, default=[0.5, 1.0, 2.0], help="of the recipe's rate")
    parser.add_argument("--table", nargs="+", type=Path, metavar="RECORDS", help="records of eqscale train")
    parser.add_argument("--out", type=Path, help="folder for report.md and runs.csv (with --table)")
    args = parser.parse_args()
    if (args.plan is None) == (args.table is None):
        parser.error("name a plan to write, or --table and records")
    if args.table is None:
        given = {name: tuple(value) for name in ("arms", "budgets") if (value := getattr(args, name))}
        preset = overridden(COMPUTE_GRIDS[args.preset], given)
        write_plan(args.plan, [Planned(spec, data_spec(preset)) for spec in plan(preset, args.factors)])
        return
    if missing := [str(path) for path in args.table if not path.is_file()]:
        parser.error(f"no file {missing[0]}")
    records = [record for path in args.table for record in read_records(path).records.values()]
    if not records:
        parser.error("no record of this results version in " + ", ".join(map(str, args.table)))
    text = table(records)
    print(text)
    if args.out:
        write_text(args.out / "report.md", f"# Learning rates\n\n{__doc__.split(chr(10))[0]}\n\n{text}\n")
        write_text(args.out / "runs.csv", runs_csv(records))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
