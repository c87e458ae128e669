"""An endless stream of deformed images: point k is an image, slightly rotated, scaled, shifted and bent.

After Loosli, Canu and Bottou, "Training invariant support vector machines using selective sampling" (2007), whose
"infinite MNIST" made millions of digits in this way. A point is a function of its number alone and is made when it is
drawn: nothing is stored, and any number of points takes the memory of one mini-batch.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

ROTATION = math.radians(12)  # at most, to either side
SCALING = 0.12  # at most, up or down
SHIFT = 1.5  # pixels at most, in either direction
BEND = 0.9  # pixels: standard deviation of the elastic displacement at a knot
KNOTS = 5  # in either direction; between them, the displacement is smooth
AFFINE = 4
NUMBERS = AFFINE + 2 * KNOTS**2  # that decide a point's deformation


def deform(images: Tensor, points: Tensor) -> Tensor:
    """The points with these numbers, `[S]` int64, made from `images [S, side^2]`: `[S, side^2]`.

    Point 0 and those below zero are the images themselves.
    """
    count, width = images.shape
    side = math.isqrt(width)
    drawn = _uniform(points, images.dtype)
    angle = ROTATION * (2 * drawn[:, 0] - 1)
    factor = 1 + SCALING * (2 * drawn[:, 1] - 1)
    shift = SHIFT * 2 / side * (2 * drawn[:, 2:4] - 1)
    cosine, sine = angle.cos() / factor, angle.sin() / factor
    # A uniform number's deviation is 1/sqrt(12); coordinates count half the image as 1.
    knots = (drawn[:, AFFINE:] - 0.5) * (12**0.5 * BEND * 2 / side)
    affine = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1)
    places = torch.cat([affine, knots], 1) @ _basis(side).to(images)
    grid = places.view(count, side, side, 2)  # where each pixel takes its value from, (across, down) in [-1, 1]
    moved = torch.nn.functional.grid_sample(images.view(count, 1, side, side), grid, align_corners=False)
    return moved.view(count, width).where((points > 0)[:, None], images)


def _uniform(points: Tensor, dtype: torch.dtype) -> Tensor:
    """NUMBERS uniform numbers for each point, from its number alone (Steele, Lea and Flood, 2014, SplitMix64)."""
    with np.errstate(over="ignore"):
        counter = points.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(NUMBERS) + np.arange(
            NUMBERS, dtype=np.uint64
        )
        z: np.ndarray = (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).to(points.device, dtype)


@cache
def _basis(side: int) -> Tensor:
    """What each number means for each pixel's place: [6 + 2 KNOTS^2, 2 side^2], across and down by turns.

    The six of the affine map (x, y and 1 for across, then for down), and a displacement of one at each knot, bicubic
    between them, for across and for down.
    """
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    x, y = axis.expand(side, side), axis[:, None].expand(side, side)
    linear = torch.stack([x, y, torch.ones(side, side)]).view(3, -1)
    each = torch.eye(KNOTS**2).view(KNOTS**2, 1, KNOTS, KNOTS)
    bent = torch.nn.functional.interpolate(each, size=(side, side), mode="bicubic", align_corners=True).flatten(1)
    rows = []
    for part in (linear, bent):
        for component in (0, 1):
            interleaved = torch.zeros(len(part), side * side, 2)
            interleaved[:, :, component] = part
            rows.append(interleaved.flatten(1))
    return torch.cat(rows)
