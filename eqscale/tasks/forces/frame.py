"""The canonical frame of a molecule: its principal axes, one of the equivalent choices at random."""

from __future__ import annotations

import torch
from torch import Tensor

from eqscale.tasks.fields import Batch
from eqscale.tasks.symmetry import transform, translate


@torch.compiler.disable
def principal_axes(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch about its mean positions with the principal axes of its atoms along x, y and z, and the way there.

    The axes are the eigenvectors of the second moments of the positions, all atoms alike, the longest first. Moments
    leave eight frames open: each axis may point either way, which includes mirror images. A rule that chooses one of
    them would jump between geometries that hardly differ, and fails for symmetric molecules. So the choice is left to
    the eigenvalue solver. It depends on the moments alone, and these are the same for a molecule and for its mirror
    images in its own principal planes; since data and augmentation are uniform in orientation, all eight frames are
    equally likely, whatever the solver does. In the same way, where two or three moments are equal (a linear molecule,
    a symmetric or a spherical top), every choice within the degenerate space is as likely as any of its turned ones.

    Returns:
        The batch, and the orthogonal matrices, (B, 3, 3), that turned it.
    """
    mask = batch.mask[..., None]
    position = batch["position"].double()
    mean = (position * mask).sum(1) / mask.sum(1)
    centred = (position - mean[:, None]) * mask
    axes = torch.linalg.eigh(centred.transpose(1, 2) @ centred)[1]  # columns, ascending
    matrix = axes.flip(2).transpose(1, 2).to(batch["position"].dtype).contiguous()
    return transform(translate(batch, -mean.to(matrix.dtype)), matrix), matrix
