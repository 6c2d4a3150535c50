"""The teacher: an exponential moving average of the network and its heads (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import nn


class Teacher(nn.Module):
    """A copy that follows the student by `momentum` after each step that was taken, and never gets a gradient."""

    def __init__(self, network: nn.Module, heads: Mapping[str, nn.Module], momentum: float) -> None:
        super().__init__()
        self.network = deepcopy(network)
        self.heads = nn.ModuleDict({name: deepcopy(head) for name, head in heads.items()})
        self.momentum = momentum
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, network: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        """Move every parameter a little towards the student's; buffers are taken over."""
        self._follow(self.network, network)
        for name, head in heads.items():
            self._follow(self.heads[name], head)

    def _follow(self, mine: nn.Module, theirs: nn.Module) -> None:
        for kept, new in zip(mine.parameters(), theirs.parameters(), strict=True):
            kept.lerp_(new, 1 - self.momentum)
        for held, given in zip(mine.buffers(), theirs.buffers(), strict=True):
            held.copy_(given)
