"""A volume through a segmentation network in windows, blended with Gaussian weights.

Windows and weights are MONAI's (`sliding_window_inference`), after nnU-Net (Isensee et al., Nature Methods 2021). A volume
smaller than the window is padded by it and cropped back. Networks in 2D go over the axial slices of a volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from torch import Tensor, nn

from medssl.networks import dense_output

WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class Windows:
    """How a volume is cut into windows and put together again; a MONAI inferer: `windows(inputs, network)`."""

    size: tuple[int, ...]
    """Sides of a window in voxels: 3, or 2 for a network that sees slices."""
    overlap: float = 0.5
    dtype: torch.dtype | None = None
    """Of autocast; None: fp32."""

    def __call__(self, inputs: Tensor, network: nn.Module) -> Tensor:
        """(1, C, *shape) prepared intensities -> (1, K, *shape) float32 logits.

        What surrounds a volume smaller than a window is the darkest value of each channel, as in the crops of the training.
        """

        def answer(window: Tensor) -> Tensor:
            with torch.autocast(window.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                return dense_output(network(window), window.shape[2:]).float()

        spatial = inputs.dim() - 2
        padded, shown = _padded(inputs, self.size)
        options: dict[str, Any] = {"sw_batch_size": WINDOWS_AT_ONCE, "overlap": self.overlap, "mode": "gaussian"}
        if len(self.size) == spatial:
            inferer = SlidingWindowInferer(roi_size=self.size, **options)
        else:
            inferer = SliceInferer(roi_size=self.size, spatial_dim=spatial - 1, **options)
        logits: Tensor = inferer(padded, answer)
        return logits[shown]


def _padded(inputs: Tensor, size: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """The volume with sides of at least `size`, in its middle what was given, and where that is."""
    shape = inputs.shape[2:]
    sides = [max(side, window) for side, window in zip(shape, (*size, 1), strict=False)]
    starts = [(wide - side) // 2 for wide, side in zip(sides, shape, strict=True)]
    shown = (slice(None), slice(None), *(slice(start, start + side) for start, side in zip(starts, shape, strict=True)))
    if tuple(sides) == tuple(shape):
        return inputs, shown
    padded = inputs.amin(dim=tuple(range(2, inputs.dim())), keepdim=True).repeat(1, 1, *sides)
    padded[shown] = inputs
    return padded, shown
