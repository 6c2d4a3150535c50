"""A network with a pretext task's head, as one module for MONAI's engines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medssl.config import check
from medssl.contracts import ModuleHead, PretextTask
from medssl.errors import ConfigError, DataError
from medssl.learn.heads import build_head
from medssl.monai.tasks import ELSEWHERE, build_task, task_class
from medssl.networks import Trunk, as_spec, network_info


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
        cls, spec = task_class(task), as_spec(network).pretraining()
        info = network_info(spec)
        built = build_task(cls, check(cls.Options, options, f"options of '{cls.name}'"), info)
        if built.input_channels(info.channels) != info.channels:
            raise ConfigError(f"'{cls.name}' changes the channels of what the network is shown. {ELSEWHERE}")
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            head = build_head(cls.name, built, spec, info)
            if isinstance(head.kind, ModuleHead):
                raise ConfigError(f"'{cls.name}' brings its own head module. {ELSEWHERE}")
            self.network = network if isinstance(network, nn.Module) else spec.build(seed=seed)
        self.head = head.module
        self._reads, self._parts, self._dims = head.reads, head.parts, info.spatial_dims
        self._trunk = Trunk(self.network, spec)

    def forward(self, images: Tensor) -> Tensor:
        """The answer to (B, C, *size), or to (B, P, C, *size) of a task that shows P parts."""
        if images.dim() == self._dims + 3:
            images = images.flatten(0, 1)
        if images.dim() != self._dims + 2 or len(images) % self._parts:
            shape = "(B, C, *size)" if self._parts == 1 else f"(B, {self._parts}, C, *size)"
            raise DataError(f"images of shape {tuple(images.shape)} were shown; this task's are {shape} with {self._dims} spatial sides.")
        features = self._trunk(images, self._reads)
        answer: Tensor = self.head(*(features[name] for name in self._reads))
        return answer
