"""The encoder of a network as a module of its own, and the network's weights split into the encoder's and the others.

These work on any network that exists, however it was built: what downstream code (a classifier, a probe, an optimizer with two learning
rates) has in its hands is the network, not its specification.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import DataError, NetworkError, UsageError
from medssl.networks.instances import first_convolution
from medssl.networks.trunk import Trunk

_END = frozenset({"encoder_end"})
_SIDES = (64, 96, 128, 32, 48, 16, 224, 160, 256)
"""Sides of images on which a network is tried."""


class Encoder(nn.Module):
    """The encoder inside `network`, whose weights it shares: `encoder(images)` is one embedding (B, E) an image.

    The forward pass stops at the encoder's end, so the decoder costs nothing; its parameters stay in `network`, without a gradient.
    """

    def __init__(self, network: nn.Module, encoder_end: str | None = None) -> None:
        super().__init__()
        self.network = network
        self._trunk = Trunk(network, None, encoder_end=encoder_end)
        self._trunk.check(_END)

    def forward(self, images: Tensor) -> Tensor:
        """(B, E): the mean over space of the encoder's end."""
        return self.end(images).flatten(2).mean(dim=2)

    def end(self, images: Tensor) -> Tensor:
        """(B, E, *grid): the encoder's end."""
        return self._features(images, _END)["encoder_end"]

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, width, *grid) of each level, from fine to coarse; the last one is the encoder's end."""
        levels = [name for name in self._trunk.features if name.startswith("level ")]
        found = self._features(images, {*levels, "encoder_end"})
        grids = [found[name] for name in levels]
        same = bool(grids) and grids[-1].shape == found["encoder_end"].shape
        return (*grids[: len(grids) - same], found["encoder_end"])

    def _features(self, images: Tensor, names: Collection[str]) -> Mapping[str, Tensor]:
        if not isinstance(images, Tensor):
            raise DataError(f"the encoder is given {type(images).__name__}, not a tensor. Give a batch of images (B, C, *size).")
        try:
            return self._trunk(images, names)
        except RuntimeError:
            # Only then: of a network that medssl does not know the first convolution need not read the images.
            _check_images(images, self.network)
            raise


def encoder(network: nn.Module, encoder_end: str | None = None) -> Encoder:
    """The encoder of a network as a module; `encoder_end` names the submodule where it ends, for networks that medssl does not know.

    Raises `NetworkError`, with the submodules that there are, where that is neither known nor said.
    """
    _check_network(network)
    if not (encoder_end is None or isinstance(encoder_end, str)):
        raise UsageError(f"encoder_end is {encoder_end!r}; it is the name of a submodule.")
    return Encoder(network, encoder_end)


def encoder_parameters(network: nn.Module, images: Tensor | None = None, encoder_end: str | None = None) -> list[nn.Parameter]:
    """The parameters that the embedding of `encoder(network)` depends on; a frozen one counts too.

    Found by a forward and backward pass of a copy without values, on `images` where given (needed only for networks that take sizes
    out of the common). With `decoder_parameters` they are all of the network's.
    """
    names = set(_reached(network, images, encoder_end))
    return [parameter for name, parameter in network.named_parameters() if name in names]


def decoder_parameters(network: nn.Module, images: Tensor | None = None, encoder_end: str | None = None) -> list[nn.Parameter]:
    """The network's other parameters: decoder and head. Freeze them to train the encoder alone, as DDP wants it."""
    names = set(_reached(network, images, encoder_end))
    return [parameter for name, parameter in network.named_parameters() if name not in names]


def _check_network(network: Any) -> None:
    if not isinstance(network, nn.Module):
        raise UsageError(f"an encoder is part of a network that exists, and {type(network).__name__} is none. Build the network first.")


def _check_images(images: Tensor, network: nn.Module) -> None:
    """`DataError` for images of other channels or dimensions than the first convolution takes."""
    found = first_convolution(network)
    if found is None:
        return
    channels, dims = found[1].in_channels, found[1].weight.dim() - 2
    if images.dim() != dims + 2 or images.shape[1] != channels:
        raise DataError(
            f"the encoder is given images of shape {tuple(images.shape)}, and {type(network).__name__} takes (B, {channels}, *size) with "
            f"{dims} spatial sides."
        )


def _reached(network: nn.Module, images: Tensor | None, encoder_end: str | None) -> list[str]:
    """Names of the parameters that the encoder's end depends on."""
    _check_network(network)
    if not (images is None or isinstance(images, Tensor)):
        raise DataError(f"images are {type(images).__name__}, not a tensor. Give a batch of images (B, C, *size), or leave them out.")
    problem: Exception | None = None
    for device in ("meta", "cpu"):
        copy = deepcopy(network).to(device).requires_grad_(True)
        trunk = Trunk(copy, None, encoder_end=encoder_end)
        trunk.check(_END)
        for example in _examples(copy, images, device):
            try:
                with torch.random.fork_rng(devices=[]):
                    end = trunk(example, _END)["encoder_end"]
            except Exception as error:  # noqa: BLE001 - whatever a network raises says that it does not take this size
                problem = problem or error
                continue
            named = dict(copy.named_parameters())
            gradients = torch.autograd.grad(end.sum(), list(named.values()), allow_unused=True)
            return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]
    raise NetworkError(
        f"{type(network).__name__} took none of the sizes that were tried ({problem}). Give images, a batch that it takes."
    ) from problem


def _examples(network: nn.Module, images: Tensor | None, device: str) -> Iterator[Tensor]:
    if images is not None:
        yield images.detach().to(device)
        return
    found = first_convolution(network)
    if found is None:
        raise NetworkError(f"{type(network).__name__} does not say by a convolution what images it takes. Give images, a batch for it.")
    _, first = found
    for side in _SIDES:
        yield torch.zeros((2, first.in_channels, *[side] * (first.weight.dim() - 2)), device=device)
