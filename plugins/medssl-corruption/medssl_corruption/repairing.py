"""An autoencoder whose code can be damaged, and the network that repairs what is decoded from such a code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

LEAK = 0.1


class Coder(nn.Module):
    """An autoencoder without skips: a code at half the resolution, `levels` times over, with `width` channels that double each time.

    It has no norms: what a voxel becomes depends on what is around it alone, so damage in one place changes nothing in another.
    """

    def __init__(self, dims: int, channels: int, width: int, levels: int) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        self.widths = [width * 2**level for level in range(levels + 1)]
        first = [conv(channels, width, 3, padding=1), nn.LeakyReLU(LEAK)]
        down = [
            layer
            for inputs, outputs in pairwise(self.widths)
            for layer in (conv(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(LEAK))
        ]
        self.encoder = nn.Sequential(*first, *down)
        self.decoder = Decoder(conv, channels, self.widths)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Code and reconstruction."""
        code = self.encoder(images)
        return code, self.decoder(code, images.shape[2:])

    def repaired(self, code: Tensor, size: torch.Size, repair: Repair, kept: Tensor) -> Tensor:
        """What the decoder, held still, makes of a damaged code with `repair` between its layers."""
        held = {name: parameter.detach() for name, parameter in self.decoder.named_parameters()}
        made: Tensor = functional_call(self.decoder, held, (code, size, repair, kept))
        return made


class Decoder(nn.Module):
    """Twice the size and a convolution, as often as the encoder halved."""

    def __init__(self, conv: Any, channels: int, widths: list[int]) -> None:
        super().__init__()
        self.up = nn.ModuleList(conv(inputs, outputs, 3, padding=1) for outputs, inputs in reversed(list(pairwise(widths))))
        self.last = conv(widths[0], channels, 3, padding=1)

    def forward(self, code: Tensor, size: torch.Size, repair: Repair | None = None, kept: Tensor | None = None) -> Tensor:
        """(B, C, *size); with `repair` what lies where the code was not `kept` (B, 1, *grid) is changed before each layer."""
        maps = code
        for step, layer in enumerate(self.up):
            maps = self._mended(maps, step, repair, kept)
            finer = [-(-side // 2 ** (len(self.up) - 1 - step)) for side in size]
            maps = F.interpolate(maps, size=finer, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False)
            maps = F.leaky_relu(layer(maps), LEAK)
        made: Tensor = self.last(self._mended(maps, len(self.up), repair, kept))
        return made

    def _mended(self, maps: Tensor, step: int, repair: Repair | None, kept: Tensor | None) -> Tensor:
        if repair is None or kept is None:
            return maps
        mended: Tensor = repair.blocks[step](maps, F.interpolate(kept, size=maps.shape[2:], mode="nearest"))
        return mended


class Repair(nn.Module):
    """A residual block for each of the decoder's resolutions, which changes what was not kept alone."""

    def __init__(self, dims: int, widths: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Residual(dims, width) for width in reversed(widths))


class _Residual(nn.Module):
    """At first it changes nothing."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        self.inner, self.outer = conv(width + 1, width, 3, padding=1), conv(width, width, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, maps: Tensor, kept: Tensor) -> Tensor:
        changed: Tensor = self.outer(F.leaky_relu(self.inner(torch.cat([maps, kept], dim=1)), LEAK))
        return maps + (1 - kept) * changed


def neighbours(code: Tensor) -> Tensor:
    """The mean of each cell and the cells around it, of those that there are."""
    pool: Any = F.avg_pool2d if code.dim() == 4 else F.avg_pool3d
    mean: Tensor = pool(code, 3, stride=1, padding=1, count_include_pad=False)
    return mean
