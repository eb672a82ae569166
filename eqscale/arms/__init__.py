"""The registry of arms; importing this package registers the built-in ones."""

from eqscale.arms import controls, frames, gatr, plain, slim
from eqscale.arms.base import Arm, Size, TokenCounts, UnknownArm, arm_names, get_arm, load_arm_files, register
from eqscale.arms.recipe import Recipe
from eqscale.roles import Role

for _arm in (*plain.ARMS, *gatr.ARMS, *frames.ARMS, *slim.ARMS, *controls.ARMS):
    register(_arm)

__all__ = [
    "Arm", "Recipe", "Role", "Size", "TokenCounts", "UnknownArm", "arm_names", "get_arm", "load_arm_files", "register",
]  # fmt: skip
