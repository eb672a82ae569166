"""Which arm is compared with which, by their roles in the run table and, within a role, by loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pandas as pd

from eqscale.errors import InputError
from eqscale.roles import Role, colours


@dataclasses.dataclass(frozen=True)
class Roles:
    """The arms of a study by role."""

    arms: Mapping[Role, tuple[str, ...]]
    """The arms of each role; the one with the lowest loss at the largest budget first."""
    control_of: Mapping[str, str]
    """Control -> the arm that it is compared with."""

    @property
    def built_in(self) -> tuple[str, ...]:
        """The arms that build the symmetry in; the others are compared with them."""
        return self.arms[Role.BUILD_IN]

    @property
    def baseline(self) -> str | None:
        """The best arm that learns the symmetry."""
        return next(iter(self.arms[Role.LEARN]), None)

    @property
    def augmented(self) -> str | None:
        """The best arm that learns it from augmented data."""
        return next(iter(self.arms[Role.AUGMENT]), None)

    @property
    def missing(self) -> str:
        """Which of the compared roles the study lacks; empty if it has both."""
        lacks = [] if self.baseline else ["no arm that learns the symmetry"]
        return " and ".join(lacks if self.built_in else [*lacks, "no arm that builds the symmetry in"])

    def colours(self) -> dict[str, str]:
        """Colour by arm, the same in all figures of a report."""
        return colours(self.arms)


def read_roles(runs: pd.DataFrame) -> Roles:
    """Roles of all arms of runs with the columns arm, role, control_of, part, status, budget, loss.

    Raises:
        InputError: an unknown role, an arm with two roles, or a control of nothing.
    """
    for arm, own in runs.groupby("arm", sort=False):
        found = [str(role) for role in own["role"].unique()]
        if len(found) > 1 or found[0] not in tuple(Role):
            raise InputError(
                f"arm {arm!r}: column 'role' holds {' and '.join(found)}; it must be one of {', '.join(Role)}, the "
                "same for all runs"
            )
        if found[0] == Role.CONTROL and not own["control_of"].notna().all():
            raise InputError(f"arm {arm!r}: a control, but its column 'control_of' is empty")
    # arms that were run at larger budgets come first
    graded = runs[(runs["status"] == "finished") & runs["part"].isin(["compute", "data_grid"])]
    graded = graded[graded["budget"] == graded.groupby("arm")["budget"].transform("max")]
    best = graded.groupby("arm").agg(budget=("budget", "first"), loss=("loss", "min"))
    first = runs.drop_duplicates("arm").set_index("arm")
    order = first.join(best, rsuffix="_best").sort_values(["budget_best", "loss_best"], ascending=[False, True])
    by_role = {role: tuple(map(str, order.index[order["role"] == role])) for role in Role}
    controls = first["control_of"][first["role"] == Role.CONTROL]
    return Roles(by_role, {str(arm): str(other) for arm, other in controls.items()})
