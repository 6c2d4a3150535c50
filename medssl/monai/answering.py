"""A network with a pretext task's head, as one module for MONAI's engines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medssl.config import check
from medssl.contracts import PretextTask
from medssl.errors import ConfigError, DataError
from medssl.learn.heads import build_head
from medssl.monai import given
from medssl.monai.tasks import ELSEWHERE, build_task, task_class
from medssl.networks import Trunk, as_spec, check_crop, network_info


class PretextNetwork(nn.Module):
    """A network that answers a pretext task: `model(images)` takes what `PretextTaskd` shows and gives what `PretextLoss` takes.

    Dense tasks are answered by a head of their own on the network's feature map, pooled ones by one linear layer on the pooled end of its
    encoder: of inputs (B, P, C, *size) each part runs through the encoder by itself. `network` stays a plain network, whose state dict
    is what you save; the head is thrown away.

    Args:
        network: anything that `medssl.pretrain` takes: a `partial(SegResNet, ...)`, a NetworkSpec, a name; a network that exists is
            itself trained.
        task: name of an installed pretext task, or its class.
        seed: of the first weights.
        options: the task's own options.
    """

    def __init__(self, network: Any, task: str | type[PretextTask], *, seed: int | None = None, **options: Any) -> None:
        super().__init__()
        if seed is not None:
            given.count_given(seed, "seed", 0)
        cls, spec = task_class(task), as_spec(network).pretraining()
        info = network_info(spec)
        built = build_task(cls, check(cls.Options, options, f"options of '{cls.name}'"), info)
        if built.input_channels(info.channels) != info.channels:
            raise ConfigError(f"'{cls.name}' changes the channels of what the network is shown. {ELSEWHERE}")
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            head = build_head(cls.name, built, spec, info)
            self.network = network if isinstance(network, nn.Module) else spec.build(seed=seed)
        self.head = head.module
        self._reads, self._parts, self._dims = head.reads, head.parts, info.spatial_dims
        self._channels, self._spec = info.channels, spec
        self._trunk = Trunk(self.network, spec)

    def forward(self, images: Tensor) -> Tensor:
        """The answer to (B, C, *size), or to (B, P, C, *size) of a task that shows P parts."""
        shape = f"(B, {'' if self._parts == 1 else f'{self._parts}, '}{self._channels}, *size)"
        taken = f"this task's are {shape} with {self._dims} spatial sides"
        images = given.real_given(images, "what the network is shown", f"Give images: {taken}.")
        found = tuple(images.shape)
        parts = images.shape[1] if images.dim() == self._dims + 3 else None
        if images.dim() == self._dims + 3:
            images = images.flatten(0, 1)
        fits = images.dim() == self._dims + 2 and images.shape[1] == self._channels and len(images) % self._parts == 0
        if not fits or parts not in (None, self._parts):
            raise DataError(f"images of shape {found} were shown; {taken}.")
        given.check_weights(images, self.network, "the network")
        try:
            features = self._trunk(images, self._reads)
        except RuntimeError:
            check_crop(self._spec, images.shape[2:], len(images), self._reads)
            raise
        answer: Tensor = self.head(*(features[name] for name in self._reads))
        return answer
