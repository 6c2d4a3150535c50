"""Affine, blur and noise of a batch of 4 x 1 x 96^3, on one thread, beside the peers that are installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from benchmarks.measure import alternately, call_cost
from benchmarks.report import Row
from medssl.augment import add_normal_noise, blur, resample
from medssl.augment.spatial import about_centre, rotation
from medssl.contracts import Draw

SIZE = (96, 96, 96)
BATCH = 4
IN_A_ROW = 4
"""Batches of one timing."""
DEGREES, SCALE, SIGMA, DEVIATION = 17.0, 1.1, 1.0, 0.1
PEERS = ("monai", "torchio", "batchgeneratorsv2")
Calls = dict[str, Callable[[Tensor], Any]]


def missing() -> list[str]:
    """Peers that are not installed."""
    return [name for name in PEERS if find_spec(name) is None]


def augmentation_rows(repeat: int) -> list[Row]:
    """Each against the best of the peers in the same run, CPU ms a sample, and what interpolation gets wrong."""
    batch = torch.randn(BATCH, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    rows = [_against_best(batch, what, ours, peers, bar, repeat) for what, ours, peers, bar in _kinds()]
    return [*rows, quality_row()]


def _kinds() -> list[tuple[str, Callable[[Tensor], Any], Calls, float]]:
    turned, flat, straight = _affine(0, 1, 2), _affine(2), _affine()
    full = torch.full((BATCH,), SIGMA)
    return [
        ("affine: any rotation and scale", lambda batch: resample(batch, turned), _affines(DEGREES, DEGREES), 1 / 1.9),
        ("affine: rotation in a plane and scale", lambda batch: resample(batch, flat), _affines(0.0, DEGREES), 1 / 5),
        ("affine: scale, shift and flip", lambda batch: resample(batch, straight), _affines(0.0, 0.0), 1 / 5),
        ("blur", lambda batch: blur(batch, full), _blurs(), 1 / 3),
        ("noise", _noisy, _noises(), 1 / 1.3),
    ]


def _against_best(batch: Tensor, what: str, ours: Callable[[Tensor], Any], peers: Calls, bar: float, repeat: int) -> Row:
    calls: Mapping[str, Callable[[], Any]] = {
        "ours": lambda: ours(batch),
        **{name: (lambda call=call: [call(image) for image in batch]) for name, call in peers.items()},
    }
    for call in calls.values():
        call()
    found = alternately(
        {name: (lambda call=call: call_cost(lambda: [call() for _ in range(IN_A_ROW)])) for name, call in calls.items()}, repeat
    )
    spent = {name: 1000 * one.cpu / (BATCH * IN_A_ROW) for name, one in found.items()}
    best = min(peers, key=lambda name: spent[name])
    return Row(what, spent["ours"], spent[best], f"{best}, the best of {', '.join(peers)}", "CPU ms", bar)


def quality_row() -> Row:
    """How far any rotation lies from cubic interpolation, beside torch's trilinear one."""
    axes = torch.meshgrid(*[torch.linspace(0, 20, side) for side in SIZE], indexing="ij")
    image = sum(torch.sin(axis * rate) for rate, axis in enumerate(axes, 1))[None, None]
    affine = _affine(0, 1, 2)[:1]
    matrix, offset = affine[0, :, :-1].double().numpy(), affine[0, :, -1].double().numpy()
    cubic = ndimage.affine_transform(image[0, 0].double().numpy(), matrix, offset, order=3, mode="nearest")
    middle = torch.tensor([(side - 1) / 2 for side in SIZE])
    scaled = torch.cat([matrix_ := affine[:, :, :-1], (matrix_ @ middle + affine[0, :, -1] - middle).unsqueeze(-1) / middle[0]], dim=-1)
    order = [2, 1, 0]
    theta = scaled[:, order][:, :, [*order, 3]]
    grid = torch.nn.functional.affine_grid(theta, [1, 1, *SIZE], align_corners=True)
    trilinear = torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=True)
    ours, torchs = (float(np.sqrt(np.mean((view[0, 0].numpy() - cubic) ** 2))) for view in (resample(image, affine), trilinear))
    return Row("any rotation: distance from cubic interpolation", ours, torchs, "torch's trilinear grid_sample", "RMSE", 1.2)


def _affine(*axes: int) -> Tensor:
    """Rotations about these axes and a scale; without any also flip and shift."""
    matrix = torch.eye(3).expand(BATCH, 3, 3)
    for axis in axes:
        matrix = rotation(torch.full((BATCH,), axis), torch.full((BATCH,), float(np.radians(DEGREES))), 3) @ matrix
    affine = about_centre(matrix * SCALE, SIZE)
    if not axes:
        affine = about_centre(torch.diag_embed(torch.tensor([[SCALE, -SCALE, SCALE]] * BATCH)), SIZE)
        affine[..., -1] += 1.5
    return affine


def _affines(others: float, last: float) -> Calls:
    """The peers' affine with these degrees about the first two axes and the last."""
    found: Calls = {}
    absent = missing()
    if "monai" not in absent:
        from monai.transforms import Affine

        radians = [float(np.radians(one)) for one in (others, others, last)]
        found["monai"] = Affine(rotate_params=radians, scale_params=[SCALE] * 3, padding_mode="border", image_only=True)
    if "torchio" not in absent:
        import torchio

        found["torchio"] = torchio.Affine(scales=[SCALE] * 3, degrees=[others, others, last], translation=0, default_pad_value=0)
    if "batchgeneratorsv2" not in absent:
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

        angle = float(np.radians(last))
        spatial = SpatialTransform(
            SIZE,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=1,
            rotation=(angle, angle),
            p_scaling=1,
            scaling=(SCALE, SCALE),
            p_synchronize_scaling_across_axes=1,
            bg_style_seg_sampling=False,
        )
        found["batchgeneratorsv2"] = lambda image: spatial(image=image)
    return found


def _blurs() -> Calls:
    found: Calls = {}
    absent = missing()
    if "monai" not in absent:
        from monai.transforms import GaussianSmooth

        found["monai"] = GaussianSmooth(SIGMA)
    if "torchio" not in absent:
        import torchio

        found["torchio"] = torchio.Blur([SIGMA] * 3)
    if "batchgeneratorsv2" not in absent:
        try:
            from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
        except ImportError:
            return found
        smooth = GaussianBlurTransform(blur_sigma=(SIGMA, SIGMA))
        found["batchgeneratorsv2"] = lambda image: smooth(image=image.clone())
    return found


def _noisy(batch: Tensor) -> Tensor:
    return add_normal_noise(batch, Draw(0, 0, range(BATCH), "noise"), torch.full((BATCH,), DEVIATION))


def _noises() -> Calls:
    found: Calls = {}
    absent = missing()
    if "monai" not in absent:
        from monai.transforms import RandGaussianNoise

        found["monai"] = RandGaussianNoise(prob=1.0, std=DEVIATION)
    if "torchio" not in absent:
        import torchio

        found["torchio"] = torchio.RandomNoise(std=(DEVIATION, DEVIATION))
    if "batchgeneratorsv2" not in absent:
        from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform

        noise = GaussianNoiseTransform(noise_variance=(DEVIATION, DEVIATION), p_per_channel=1, synchronize_channels=True)
        found["batchgeneratorsv2"] = lambda image: noise(image=image.clone())
    return found
