"""One page for the studies of several tasks: who is ahead on each, and what holds on all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws import plots
from eqscale.laws.axes import AXES
from eqscale.laws.render import markdown_table
from eqscale.numbers import number
from eqscale.report.exhibits import UNSEEN, ratio_text
from eqscale.report.leads import best_arms, best_run_ratios, leads
from eqscale.report.parts import read_study, study_folder
from eqscale.report.prediction import best_runs, outcomes
from eqscale.report.render import Content
from eqscale.report.split import ASYMMETRY, GATR, LEAD, MEASURED, PLAIN
from eqscale.storage import write_text

BEST = "**best**"


def same_arm(tables: Mapping[str, pd.DataFrame]) -> str:
    """Which arm has the lowest loss on each task, how sure that is, and whether it is the same, in words.

    ``tables`` are those of ``leads`` by task.
    """
    best = {task: best_arms(table) for task, table in tables.items()}
    top = {task: own[max(own)] for task, own in best.items()}
    if len(arms := {arm for arm, _ in top.values()}) == 1:
        unsure = [task for task, (_, found) in top.items() if not found]
        how = f"has the lowest loss, not for sure on {' and '.join(unsure)}" if unsure else "is ahead of all others"
        said = f"At the largest budget of every task `{arms.pop()}` {how}."
    else:
        how = ", ".join(f"`{arm}`{' for sure' * found} on {task}" for task, (arm, found) in top.items())
        said = f"The tasks disagree at their largest budgets. Lowest is {how}."
    others = [
        f"`{arm}` on {task} at {number(budget, 3)}"
        for task, own in best.items()
        for budget, (arm, found) in own.items()
        if found and arm != top[task][0]
    ]
    return said + f" Below, another arm is for sure: {', '.join(others)} executed FLOPs." * bool(others)


def check_joint(folders: Sequence[Path], target: Path) -> None:
    """Check that a page at ``target`` can join studies, before their reports are written.

    Raises:
        InputError: as ``read_study``; two folders hold the same task, or the target is a file or a study.
    """
    if (target / "task.json").exists() or target.is_file():
        raise InputError(f"--joint {target}: a study's results or a file; give a folder of its own")
    tasks = [read_study(study_folder(folder)).wording.name for folder in folders]
    if len(set(tasks)) < len(tasks):
        raise InputError(f"a joint page compares different tasks; these studies are of {', '.join(tasks)}")


def write_joint(contents: Sequence[Content], target: Path) -> None:
    """Write ``report.md``, ``joint.csv`` and the figure of several studies from the content of their reports.

    Raises:
        InputError: a study has no measured optima.
    """
    by_task = {content.study.wording.name: content for content in contents}
    tables = {task: leads(content.analysis.minima.get("executed", {})) for task, content in by_task.items()}
    for task, table in tables.items():
        if table.empty:
            folder = str(by_task[task].study.folder)
            raise InputError(f"{folder!r} has no measured optima: they need four sizes of an arm at a budget")
    target.mkdir(parents=True, exist_ok=True)
    with plots.style():
        figure, panels = plots.panel_grid(len(tables), height=2.8, sharey=True)
        for (task, table), panel in zip(tables.items(), panels, strict=False):
            colours = by_task[task].study.roles.colours()
            for arm, own in table.groupby("arm", sort=False):
                error = np.array((own["ratio"] - own["low"], own["high"] - own["ratio"]))
                panel.errorbar(
                    own["budget"], own["ratio"], error, marker="o", markersize=3.5, capsize=2, linewidth=1.0,
                    color=colours[arm], label=arm,
                )  # fmt: skip
            panel.set(xscale="log", yscale="log", title=task, xlabel=AXES["executed"].label)
        panels[0].set_ylabel("loss over that of the best arm")
        drawn = (zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels)
        plots.legend_above(figure, list({arm: line for own in drawn for line, arm in own}.values()))
        plots.save(plots.finish(figure), target / "loss_over_best")
    joined = pd.concat(table.assign(task=task) for task, table in tables.items())
    columns = ["task", "arm", "budget", "ratio", "low", "high"]
    write_text(target / "joint.csv", joined[columns].to_csv(index=False))
    arms = sorted(joined["arm"].unique())
    rows = [
        [task, number(budget, 3), *(_cell(own[own["arm"] == arm]) for arm in arms)]
        for task, table in tables.items()
        for budget, own in table.groupby("budget")
    ]
    places = {task: os.path.relpath(content.study.folder, target) for task, content in by_task.items()}
    links = (f"[{task}]({Path(place).as_posix()}/report.md)" for task, place in places.items())
    parts = [
        "# Is it the same arm on every task?",
        f"**{same_arm(tables)}**",
        "![Loss over that of the best arm](loss_over_best.png)",
        "*Lowest losses as measured at each budget, over the lowest of them, with 95 % intervals. No law is used. "
        "`joint.csv` has the numbers.*",
        markdown_table(["task", "executed FLOPs", *(f"`{arm}`" for arm in arms)], rows),
        *_beyond(by_task),
        "## What holds on all of them?",
        "The checks of the paper's three conclusions, on executed FLOPs, by the arm that builds the symmetry in. What "
        "holds on all tasks holds on each by its own interval; nothing is pooled.",
        _checks(by_task),
        *_parts_of_the_lead(by_task),
        f"The reports: {', '.join(links)}.",
    ]
    write_text(target / "report.md", "\n\n".join(part.strip() for part in parts) + "\n")


def _beyond(by_task: Mapping[str, Content]) -> list[str]:
    """What validation runs above the compute grid gave, each arm's best over the lowest; empty without two arms."""
    ratios: dict[tuple[str, str], dict[str, str]] = {}
    for task, content in by_task.items():
        for prediction in content.study.predictions:
            best = best_runs(outcomes(prediction, content.study.part("validation")))
            if prediction["axis"] == "executed" and len(best) > 1:
                own = best_run_ratios(best, content.analysis.noise)
                said = {arm: own[arm].ratio() if arm in own else BEST for arm in best}
                ratios[task, number(prediction["compute"], 3)] = said
    if not ratios:
        return []
    to_come = {task: content.study.to_come.get("validation", 0) for task, content in by_task.items()}
    counts = ", ".join(f"{task} {count}" for task, count in to_come.items() if count)
    unfinished = f" Unfinished (planned runs that haven't ended): {counts}." if counts else ""
    arms = sorted({arm for said in ratios.values() for arm in said})
    rows = [[*key, *(said.get(arm, UNSEEN) for arm in arms)] for key, said in ratios.items()]
    return [
        "## Does it last above these budgets?",
        "Validation, predicted before it was run: the loss of each arm's best run over the lowest of them. The "
        f"95 % intervals hold the noise between seeds, not the choice of the best of a few sizes.{unfinished}",
        markdown_table(["task", "executed FLOPs", *(f"`{arm}`" for arm in arms)], rows),
    ]


def _checks(by_task: Mapping[str, Content]) -> str:
    """The outcome of every check for every built-in arm on each task, and those that all tasks share."""
    found: dict[str, dict[str, dict[str, str]]] = {}  # claim -> task -> arm -> outcome
    for task, content in by_task.items():
        for conclusion in content.conclusions:
            if conclusion.axis in ("", "executed") and conclusion.arm:
                for check in conclusion.checks:
                    found.setdefault(check.claim, {}).setdefault(task, {})[conclusion.arm] = check.outcome
    rows = []
    for claim, by_arm in found.items():
        own = [by_arm.get(task, {}) for task in by_task]
        alike = {arm: said for arm, said in own[0].items() if all(other.get(arm) == said for other in own)}
        decided = {arm: said for arm, said in alike.items() if said != "open"}
        rows.append([claim, *map(_by_outcome, own), _by_outcome(decided)])
    return markdown_table(["check", *by_task, "on all"], rows)


def _by_outcome(outcomes: Mapping[str, str]) -> str:
    arms: dict[str, list[str]] = {}
    for arm, outcome in outcomes.items():
        arms.setdefault(outcome, []).append(f"`{arm}`")
    return "; ".join(f"{outcome} ({', '.join(own)})" for outcome, own in sorted(arms.items())) or UNSEEN


def _parts_of_the_lead(by_task: Mapping[str, Content]) -> list[str]:
    """What the lead of GATr over the plain transformer is made of at each task's largest budget."""
    tables = {task: content.split for task, content in by_task.items() if len(content.split)}
    if not tables:
        return []
    top = {task: table[table["budget"] == table["budget"].max()] for task, table in tables.items()}
    header = ["part", *(f"{task}, {number(own['budget'].iloc[0], 3)} FLOPs" for task, own in top.items())]
    known = {task: {row["part"]: ratio_text(row) for _, row in own.iterrows()} for task, own in top.items()}
    rows = [[part, *(said.get(part, UNSEEN) for said in known.values())] for part in MEASURED]
    return [
        "## Is it the symmetry?",
        f"The loss of `{PLAIN}` over that of `{GATR}`, split as in the reports: {LEAD} is the product of the others "
        f"but {ASYMMETRY}, which is one trained `{PLAIN}` over its mean over the group.",
        markdown_table(header, rows),
    ]


def _cell(own: pd.DataFrame) -> str:
    if own.empty:
        return UNSEEN
    row = own.iloc[0]
    return BEST if row["ratio"] == 1 else ratio_text(row)
