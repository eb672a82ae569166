"""``eqscale simulate`` and ``eqscale check``: a study before it costs anything, and after it has run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.cli.plugins import load_plugins
from eqscale.numbers import number
from eqscale.places import STUDIES, remembered_results, studies_in
from eqscale.plugins import add_plugin_options
from eqscale.tracking import TRACKING_HELP, tracking_uri

if TYPE_CHECKING:
    from rich.table import Table

    from eqscale.study.check import Finding, Study
    from eqscale.study.estimate import Estimator
    from eqscale.study.simulate import Forecast

_CHECK = """Compare a study's ledger, which is the truth, with its views: run table, records.jsonl and MLflow runs.

Lists runs that are missing, doubled, different or unknown in a view, MLflow runs left RUNNING, damaged records,
checkpoints and weights without a run, and records of earlier code or other data. Exit code 0 if all agree, 1 if
not. --mend rewrites the views that differ, and sets damaged records aside: the ledger adopts what it lacks from
records.jsonl, and the next start of the study trains the other runs again.

    eqscale check quick
    eqscale check quick --mend
"""

_SIMULATE = """Forecast a preset's compute grid on a cluster: wall time, GPU-hours, utilisation, cost.

Plans the study with the engine's own scheduling policy and runs the plan in virtual time, for each number of
GPUs; a tune job with --devices-per-trial N makes the plan that --gpus-per-trial N shows. The time of a trial
comes from a FLOP/s figure (--gpu or --flops-per-second), or from the measured run times of an earlier study on
the same hardware (--throughput-from).

    eqscale simulate --preset paper --gpus 8 64 --flops-per-second 1e14 --price 2.5
    eqscale simulate --preset cpu --gpus 2 --gpus-per-trial 1 --throughput-from results/quick/runs.csv
"""


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verbs ``check`` and ``simulate``."""
    _register_check(verbs)
    _register_simulate(verbs)


def _register_check(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "check",
        help="compare a study's ledger with its run table, records and MLflow runs, and mend those",
        description=_CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="STUDY", help="name of the study, e.g. quick")
    parser.add_argument("--storage", default=STUDIES, help="folder or URI of studies (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="folder of the run table (default: the study's)")
    parser.add_argument("--tracking-uri", help=TRACKING_HELP)
    parser.add_argument("--mend", action="store_true", help="rewrite run table, records and MLflow where they differ")
    add_plugin_options(parser)
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.study.check import check, mend
    from eqscale.study.lease import driver_at_work, only_driver

    load_plugins(args)
    study = _find(args)
    console = make_console()
    if args.mend:
        with only_driver(study.storage.study) as still_ours:
            before = {finding for finding in check(study) if not finding.note}
            if before:
                mend(study, still_ours)
            findings = check(study)
        mended = len(before - set(findings))
        console.print(f"mended: {mended} of {len(before)}" if before else "nothing to mend")
    else:
        running = driver_at_work(study.storage.study)
        if running:
            console.print(f"[yellow]{running}[/yellow]: unfinished trials aren't counted", highlight=False)
        findings = check(study, running=bool(running))
    if findings:
        console.print(_finding_table(findings))
    differing = sum(not finding.note for finding in findings)
    records = len(study.storage.ledger.records())
    verdict = f"{differing} disagreements" if differing else "all views agree with the ledger"
    advice = " (--mend rewrites them)" if differing and not args.mend else ""
    notes = len(findings) - differing
    console.print(f"{args.study}: {records} records; {verdict}{advice}, {notes} notes", highlight=False)
    return 1 if differing else 0


def _find(args: argparse.Namespace) -> Study:
    from eqscale.errors import InputError
    from eqscale.storage import open_place
    from eqscale.study.check import Study
    from eqscale.study.trials import Storage

    place = open_place(args.storage)
    storage = Storage(place / args.study, Path())
    if not storage.ledger.folder.exists():
        known = f"; there are: {', '.join(there)}" if (there := studies_in(place)) else ""
        raise InputError(f"there is no study {args.study!r} in {args.storage!r}{known}")
    return Study(
        name=args.study,
        storage=storage,
        results=args.results or remembered_results(storage.study) or Path("results") / args.study,
        tracking_uri=tracking_uri(args.tracking_uri),
        experiment=f"eqscale-{args.study}",
    )


def _finding_table(findings: list[Finding]) -> Table:
    from rich.table import Column, Table

    headings = ("", "where", "what", "run", "detail")
    table = Table(*(Column(heading, overflow="fold") for heading in headings), box=None)
    for finding in sorted(findings, key=lambda f: (f.note, f.where, f.kind, f.what)):
        mark = "[dim]note[/dim]" if finding.note else "[red]differs[/red]"
        table.add_row(mark, finding.where, finding.kind, finding.what, finding.detail)
    return table


def _register_simulate(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "simulate",
        help="wall time, GPU-hours, utilisation and cost of a preset on a cluster, before it costs anything",
        description=_SIMULATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    number: dict[str, Any] = {"type": float, "metavar": "X"}
    add("--preset", default="paper", help="preset of eqscale run grid (default: paper)")
    gpus = [1, 8, 16, 32, 64, 128, 256]
    help_text = "numbers of GPUs (or of workers, whatever the throughput is of); default: 1 8 16 32 64 128 256"
    add("--gpus", nargs="+", default=gpus, help=help_text, **count)
    add("--gpus-per-node", default=8, help="GPUs of a node (default: 8)", **count)
    help_text = "most GPUs that one trial may use, on one node (default: 8; 1: as many trials as GPUs)"
    add("--gpus-per-trial", default=8, help=help_text, **count)
    speed = parser.add_mutually_exclusive_group().add_argument
    speed("--gpu", help="GPU model, e.g. A100 (default) or H100: its FP32 peak x 0.35, assumed")
    speed("--flops-per-second", help="FLOP/s that training reaches on one GPU, e.g. 1e14", **number)
    help_text = "run table of a study that ran on this hardware"
    speed("--throughput-from", type=Path, metavar="RUNS", help=help_text)
    add("--price", help="price of a GPU-hour, for the cost column", **number)
    help_text = "spread of true around estimated times of trials (default: 0.1, what the fit on quick's runs leaves)"
    add("--estimate-error", default=0.1, help=help_text, **number)
    add("--plot", type=Path, metavar="FILE.png", help="draw wall time and utilisation against GPUs")
    parser.set_defaults(run=_simulate)


def _simulate(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.study.estimate import DDP_EFFICIENCY
    from eqscale.study.grid import compute_grid
    from eqscale.study.presets import COMPUTE_GRIDS
    from eqscale.study.progress import human_time
    from eqscale.study.schedule import Cluster
    from eqscale.study.simulate import forecast

    _check_simulation(args)
    estimate, speed = _throughput(args)
    specs = compute_grid(COMPUTE_GRIDS[args.preset])
    clusters = [Cluster(gpus, min(gpus, args.gpus_per_node)) for gpus in sorted(set(args.gpus))]
    design: dict[str, Any] = {"largest": args.gpus_per_trial, "error": args.estimate_error}
    forecasts = [forecast(specs, estimate, cluster, **design) for cluster in clusters]

    console = make_console()
    alone = [estimate(spec) for spec in specs]
    longest = max(specs, key=estimate)
    console.print(
        f"{args.preset}: {len(specs)} runs, {number(sum(spec.budget for spec in specs), 3)} FLOPs, "
        f"{sum(alone) / 3600:,.0f} GPU-hours on one GPU a run; the longest, {longest.name}, "
        f"takes {human_time(max(alone))}",
        highlight=False,
    )
    console.print(f"speed: {speed}; a gang loses {1 - DDP_EFFICIENCY:.0%} at each doubling (assumed)", highlight=False)
    console.print(_forecast_table(forecasts, args.price))
    console.print(
        "in trials: share of the paid GPU-seconds inside trials; useful: what one-GPU trials would have needed, "
        "over what is paid;\neven split: the work over the GPUs; longest trial: on the GPUs that it gets; GPUs of "
        "a trial: trials x GPUs each"
    )
    if args.plot:
        _draw(forecasts, args.plot, f"{args.preset}, {speed}")
        console.print(f"drawn: {args.plot}")
    return 0


def _check_simulation(args: argparse.Namespace) -> None:
    from eqscale.errors import InputError
    from eqscale.study.presets import COMPUTE_GRIDS

    if args.preset not in COMPUTE_GRIDS:
        raise InputError(f"unknown preset {args.preset!r}; choose from {', '.join(COMPUTE_GRIDS)}")
    for flag, value in (("--flops-per-second", args.flops_per_second), ("--price", args.price)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{flag} must be positive, not {value:g}")
    per_node, per_trial = ("--gpus-per-node", args.gpus_per_node), ("--gpus-per-trial", args.gpus_per_trial)
    for flag, count in (per_node, per_trial, ("--gpus", min(args.gpus))):
        if count < 1:
            raise InputError(f"{flag} must be at least 1, not {count}")
    if not 0 <= args.estimate_error <= 1:
        raise InputError(f"--estimate-error must lie between 0 and 1, not {args.estimate_error:g}")


def _forecast_table(forecasts: list[Forecast], price: float | None) -> Table:
    from rich.table import Table

    from eqscale.study.progress import human_time

    cells: dict[str, Callable[[Forecast], str]] = {
        "GPUs": lambda f: str(f.cluster.devices),
        "wall time": lambda f: human_time(f.wall),
        "GPU-hours": lambda f: f"{f.device_hours:,.0f}",
        "in trials": lambda f: f"{f.inside:.1%}",
        "useful": lambda f: f"{f.useful:.1%}",
        "even split": lambda f: human_time(f.even),
        "longest trial": lambda f: human_time(f.longest),
        "limit": lambda f: "longest trial" if f.longest > f.even else "GPUs",
        "GPUs of a trial": lambda f: ", ".join(f"{count} x {devices:g}" for devices, count in f.gangs.items()),
    }
    if price:
        cells["cost"] = lambda f: f"{f.device_hours * price:,.0f}"
    table = Table()
    for heading in cells:
        table.add_column(heading, justify="left" if heading == "GPUs of a trial" else "right", no_wrap=True)
    for forecast in forecasts:
        table.add_row(*(cell(forecast) for cell in cells.values()))
    return table


def _throughput(args: argparse.Namespace) -> tuple[Estimator, str]:
    from eqscale.errors import InputError
    from eqscale.study.estimate import GPU_PEAKS, GPU_UTILISATION, Estimator, gpu_guess
    from eqscale.study.simulate import measured_throughput

    if args.throughput_from:
        estimate, hardware = measured_throughput(args.throughput_from)
        return estimate, f"as measured on {hardware} in {args.throughput_from}"
    if args.flops_per_second:
        return Estimator(gpu_guess(args.flops_per_second)), f"{args.flops_per_second:g} FLOP/s on a GPU (given)"
    model = (args.gpu or "A100").upper()
    if model not in GPU_PEAKS:
        raise InputError(f"unknown GPU {args.gpu!r}; choose from {', '.join(GPU_PEAKS)}, or use --flops-per-second")
    reached = GPU_UTILISATION * GPU_PEAKS[model]
    text = f"{number(reached, 3)} FLOP/s on {model} ({GPU_UTILISATION:.0%} of the FP32 peak, assumed)"
    return Estimator(gpu_guess(reached)), text


def _draw(forecasts: list[Forecast], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from eqscale.errors import InputError
    from eqscale.storage import written_whole

    gpus = [result.cluster.devices for result in forecasts]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(gpus, [result.wall / 3600 for result in forecasts], "o-", label="simulated")
    left.loglog(gpus, [result.even / 3600 for result in forecasts], ":", color="0.4", label="even split")
    left.set(xlabel="GPUs", ylabel="wall time, hours")
    right.semilogx(gpus, [result.inside for result in forecasts], "o-", label="inside trials")
    right.semilogx(gpus, [result.useful for result in forecasts], "s--", label="useful")
    right.axhline(0.95, color="0.4", lw=0.8, ls=":")
    right.set(xlabel="GPUs", ylabel="share of paid GPU-seconds", ylim=(0, 1.02))
    for axes in (left, right):
        axes.set_xticks(gpus, [str(count) for count in gpus])
        axes.minorticks_off()
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=9)
    try:
        with written_whole(path) as file:
            figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {str(path)!r} can't be written: {error}") from error
    finally:
        plt.close(figure)
