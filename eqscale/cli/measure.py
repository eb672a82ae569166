"""``eqscale measure``: the best model of each arm of a study, measured once from its weights for the report."""

from __future__ import annotations

import argparse
from pathlib import Path

from eqscale.cli.plugins import load_plugins
from eqscale.errors import InputError
from eqscale.places import RESULTS_HELP, STUDIES, find_results
from eqscale.plugins import add_plugin_options

_HELP = """\
Measure the best model of each arm (the lowest loss at the arm's largest budget) from its weights: its rollouts; if it
is not equivariant, its errors with predictions averaged over 2, 4, ... elements of the symmetry group (test-time
averaging); and, if the task draws predictions, for the best arm and the one that learns the symmetry an animation of
one beside the truth.
The results go into the folder "evaluation" of DIR, from which eqscale report shows them.

Models that are already measured are skipped.

    eqscale measure results/cpu && eqscale report results/cpu
"""


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``measure``."""
    parser = verbs.add_parser(
        "measure",
        help="measure the best models of a study from their weights: averaging, rollouts, an animation",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help=RESULTS_HELP)
    parser.add_argument("--study", help="name of the study (default: that of the folder)")
    parser.add_argument("--storage", type=Path, default=Path(STUDIES), help="folder of studies (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="arms to measure (default: all)")
    help_text = "numbers of group elements to average predictions over (default: 2 4 8 16)"
    parser.add_argument("--average", nargs="+", type=int, default=[2, 4, 8, 16], metavar="K", help=help_text)
    help_text = "length of the rollouts (default: 1)"
    parser.add_argument("--rollout", type=float, default=1.0, metavar="SECONDS", help=help_text)
    parser.add_argument("--system", type=int, default=0, metavar="K", help="test system of the animation (default: 0)")
    add_plugin_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.measure import best_models
    from eqscale.report.parts import read_study
    from eqscale.report.wording import read_json
    from eqscale.tasks import get_task

    load_plugins(args)
    if min(args.average) < 2:
        raise InputError(f"--average {min(args.average)}: at least 2 (1 is always measured)")
    folder = find_results(args.folder, str(args.storage))
    study = read_study(folder)
    known = list(dict.fromkeys(study.runs["arm"].astype(str)))
    for arm in args.arms or []:
        if arm not in known:
            raise InputError(f"--arms {arm}: no run of it in {str(folder)!r}; it has {', '.join(known)}")
    name = args.study or (read_json(folder / "study.json") or {}).get("study", folder.absolute().name)
    models = best_models.choose(study, args.storage, name, sorted(set(args.average)), args.arms or known)
    console = make_console()
    for k, model in enumerate(models):
        animation = best_models.measurements_path(model, folder, ".gif")
        if best_models.is_measured(model, folder):
            console.print(f"{model.name}: measured already", highlight=False)
        else:
            measured = []
            for what, assessment in best_models.measure(model, args.data, args.rollout):
                nmse = f"{assessment.errors['nmse']:.4f} ± {assessment.errors['nmse_se']:.4f}"
                console.print(f"{model.name}, {what}: NMSE {nmse}", highlight=False)
                measured.append((what, assessment))
            console.print(f"written: {best_models.write_measurements(model, measured, folder)}")
            animation.unlink(missing_ok=True)  # of another run
        wanted = (k == 0 or model.arm == study.roles.baseline) and not animation.is_file()
        if wanted and get_task(model.task).draws_predictions:
            console.print(f"written: {best_models.write_animation(model, args.data, args.system, folder)}")
    return 0
