"""One page for the studies of several tasks: who is ahead on each, and what holds on all of them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws import plots
from eqscale.laws.axes import AXES
from eqscale.laws.render import interval_text, markdown_table, number
from eqscale.report.exhibits import UNSEEN
from eqscale.report.parts import read_study
from eqscale.report.roles import Roles
from eqscale.report.split import GATR, LEAD, PARTS, PLAIN, ratio_text
from eqscale.storage import write_text


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the report of one study says about its compute grid, without a law."""

    task: str
    folder: Path
    ratios: pd.DataFrame
    """Of each arm and budget: columns arm, budget, ratio (loss over that of the best arm there), low, high (95 %)."""
    roles: Roles

    @property
    def lowest(self) -> dict[float, tuple[str, bool]]:
        """The arm with the lowest loss at each budget, and whether all others are behind by their intervals."""
        best = self.ratios[self.ratios["ratio"] == 1].set_index("budget")["arm"]
        budgets = self.ratios[self.ratios["ratio"] > 1].groupby("budget")["low"].min() > 1
        return {at: (arm, bool(budgets.get(at, False))) for at, arm in best.items()}


def read_answer(folder: Path) -> Answer:
    """The measured optima of a study whose report is written.

    Raises:
        InputError: as ``read_study``, or no budget has measured optima.
    """
    study, path = read_study(folder), folder / "minima.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["axis"])
    table = table[table["axis"] == "executed"]
    if table.empty:
        raise InputError(f"{str(folder)!r} has no measured optima: they need four sizes of an arm at a budget")
    parts = []
    for budget, here in table.groupby("cost"):
        losses = here[here["quantity"] == "loss"].set_index("arm")["estimate"]
        best = losses.idxmin()
        over = here[here["quantity"] == f"loss over {best}"].set_index("arm").reindex(losses.index)
        over.loc[best, ["estimate", "model_low", "robust_low", "model_high", "robust_high"]] = 1.0
        found = {
            "ratio": over["estimate"],
            "low": over[["model_low", "robust_low"]].min(axis=1),
            "high": over[["model_high", "robust_high"]].max(axis=1),
        }
        parts.append(pd.DataFrame(found).reset_index().assign(budget=budget))
    ratios = pd.concat(parts, ignore_index=True)[["arm", "budget", "ratio", "low", "high"]]
    return Answer(study.wording.name, folder, ratios, study.roles)


def same_arm(answers: Sequence[Answer]) -> str:
    """Which arm has the lowest loss on each task, how sure that is, and whether it is the same, in words."""
    top = {answer.task: answer.lowest[max(answer.lowest)] for answer in answers}
    if len(arms := {arm for arm, _ in top.values()}) == 1:
        unsure = [task for task, (_, found) in top.items() if not found]
        how = f"has the lowest loss, not for sure on {' and '.join(unsure)}" if unsure else "is ahead of all others"
        said = f"At the largest budget of every task `{arms.pop()}` {how}."
    else:
        how = ", ".join(f"`{arm}`{' for sure' * found} on {task}" for task, (arm, found) in top.items())
        said = f"The tasks disagree at their largest budgets. Lowest is {how}."
    others = [
        f"`{arm}` on {answer.task} at {budget:.3g}"
        for answer in answers
        for budget, (arm, found) in answer.lowest.items()
        if found and arm != top[answer.task][0]
    ]
    return said + f" Below, another arm is for sure: {', '.join(others)} executed FLOPs." * bool(others)


def check_joint(folders: Sequence[Path], target: Path) -> None:
    """Check that a page at ``target`` can join studies, before their reports are written.

    Raises:
        InputError: as ``read_study``; two folders hold the same task, or the target is a file or a study.
    """
    if (target / "task.json").exists() or target.is_file():
        raise InputError(f"--joint {target}: a study's results or a file; give a folder of its own")
    tasks = [read_study(folder).wording.name for folder in folders]
    if len(set(tasks)) < len(tasks):
        raise InputError(f"a joint page compares different tasks; these studies are of {', '.join(tasks)}")


def write_joint(folders: Sequence[Path], target: Path) -> None:
    """Write ``report.md``, ``joint.csv`` and the figure of several studies, whose reports are written already.

    Raises:
        InputError: as ``read_answer``.
    """
    answers = [read_answer(folder) for folder in folders]
    target.mkdir(parents=True, exist_ok=True)
    with plots.style():
        figure, panels = plots.panel_grid(len(answers), height=2.8, sharey=True)
        for answer, panel in zip(answers, panels, strict=False):
            colours = answer.roles.colours()
            for arm, own in answer.ratios.groupby("arm", sort=False):
                error = (own["ratio"] - own["low"], own["high"] - own["ratio"])
                shown = None if own["low"].isna().any() else np.array(error)
                panel.errorbar(
                    own["budget"], own["ratio"], shown, marker="o", markersize=3.5, capsize=2, linewidth=1.0,
                    color=colours[arm], label=arm,
                )  # fmt: skip
            panel.set(xscale="log", yscale="log", title=answer.task, xlabel=AXES["executed"].label)
            panel.legend(fontsize=7)
        panels[0].set_ylabel("loss over that of the best arm")
        plots.save(plots.finish(figure), target / "loss_over_best")
    arms = list(dict.fromkeys(arm for answer in answers for arm in answer.ratios["arm"]))
    table = pd.concat(answer.ratios.assign(task=answer.task) for answer in answers)
    write_text(target / "joint.csv", table[["task", *answers[0].ratios]].to_csv(index=False))
    rows = [
        [answer.task, f"{budget:.3g}", *(_cell(own[own["arm"] == arm]) for arm in arms)]
        for answer in answers
        for budget, own in answer.ratios.groupby("budget")
    ]
    links = (f"[{a.task}]({Path(os.path.relpath(a.folder, target)).as_posix()}/report.md)" for a in answers)
    parts = [
        "# Is it the same arm on every task?",
        f"**{same_arm(answers)}**",
        "![Loss over that of the best arm](loss_over_best.png)",
        "*Lowest losses as measured at each budget, over the lowest of them, with 95 % intervals. No law is used. "
        "`joint.csv` has the numbers.*",
        markdown_table(["task", "executed FLOPs", *(f"`{arm}`" for arm in arms)], rows),
        "## What holds on all of them?",
        "The checks of the paper's three conclusions, on executed FLOPs, by the arm that builds the symmetry in. What "
        "holds on all tasks holds on each by its own interval; nothing is pooled.",
        _checks(answers),
        *_parts_of_the_lead(answers),
        f"The reports: {', '.join(links)}.",
    ]
    write_text(target / "report.md", "\n\n".join(part.strip() for part in parts) + "\n")


def _checks(answers: Sequence[Answer]) -> str:
    """The outcome of every check for every built-in arm on each task, and those that all tasks share."""
    found: dict[str, dict[str, dict[str, str]]] = {}  # claim -> task -> arm -> outcome
    for answer in answers:
        for conclusion in json.loads((answer.folder / "conclusions.json").read_bytes()):
            if conclusion["axis"] in ("", "executed") and conclusion["arm"]:
                for check in conclusion["checks"]:
                    outcomes = found.setdefault(check["claim"], {}).setdefault(answer.task, {})
                    outcomes[conclusion["arm"]] = check["outcome"]
    rows = []
    for claim, by_task in found.items():
        own = [by_task.get(answer.task, {}) for answer in answers]
        alike = {arm: said for arm, said in own[0].items() if all(task.get(arm) == said for task in own)}
        decided = {arm: said for arm, said in alike.items() if said != "open"}
        rows.append([claim, *map(_by_outcome, own), _by_outcome(decided)])
    return markdown_table(["check", *(answer.task for answer in answers), "on all"], rows)


def _by_outcome(outcomes: Mapping[str, str]) -> str:
    arms: dict[str, list[str]] = {}
    for arm, outcome in outcomes.items():
        arms.setdefault(outcome, []).append(f"`{arm}`")
    return "; ".join(f"{outcome} ({', '.join(own)})" for outcome, own in sorted(arms.items())) or UNSEEN


def _parts_of_the_lead(answers: Sequence[Answer]) -> list[str]:
    """What the lead of GATr over the plain transformer is made of at each task's largest budget."""
    tables = {a.task: pd.read_csv(a.folder / "split.csv") for a in answers if (a.folder / "split.csv").is_file()}
    if not tables:
        return []
    top = {task: table[table["budget"] == table["budget"].max()] for task, table in tables.items()}
    header = ["part", *(f"{task}, {own['budget'].iloc[0]:.3g} FLOPs" for task, own in top.items())]
    rows = [[part, *(ratio_text(own.set_index("part").loc[part]) for own in top.values())] for part in PARTS]
    return [
        "## Is it the symmetry?",
        f"The loss of `{PLAIN}` over that of `{GATR}`, split as in the reports: {LEAD} is the product of the parts.",
        markdown_table(header, rows),
    ]


def _cell(own: pd.DataFrame) -> str:
    if own.empty:
        return "–"
    ratio, low, high = own[["ratio", "low", "high"]].iloc[0]
    if ratio == 1:
        return "**best**"
    return number(ratio, 3) + ("" if math.isnan(low) else f" {interval_text((low, high), 3)}")
