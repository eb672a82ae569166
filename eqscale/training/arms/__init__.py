"""The registry of arms; importing this package registers the built-in ones."""

from eqscale.roles import Role
from eqscale.training.arms import gatr, plain
from eqscale.training.arms.base import Arm, Size, UnknownArm, arm_names, get_arm, register
from eqscale.training.arms.recipe import Recipe

for _arm in (*plain.ARMS, *gatr.ARMS):
    register(_arm)

__all__ = ["Arm", "Recipe", "Role", "Size", "UnknownArm", "arm_names", "get_arm", "register"]
