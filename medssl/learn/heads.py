"""Heads: what turns the encoder's end or the dense feature map into a task's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from medssl.contracts import DenseHead, Head, ModuleHead, NetworkInfo, PooledHead, PretextTask
from medssl.errors import NetworkError, PluginError
from medssl.learn.ops import by_part, pool
from medssl.networks import NetworkSpec, dense_head
from medssl.plugins import blame, provider_of

Reads = Literal["encoder_end", "feature_map"]


@dataclass(frozen=True)
class Answerer:
    """A task's head as a module, what it reads, and whether the task itself owns it (and so already saves it)."""

    module: nn.Module
    reads: Reads
    owned: bool
    kind: Head


class PooledAnswer(nn.Module):
    """One linear layer on the pooled encoder's end of `parts` inputs a crop: (B * parts, E, *grid) -> (B, [parts,] outputs)."""

    def __init__(self, width: int, head: PooledHead) -> None:
        super().__init__()
        self.parts, self.join = head.parts, head.join
        self.linear = nn.Linear(width * head.parts if head.join == "concat" else width, head.outputs)

    def forward(self, encoder_end: Tensor) -> Tensor:
        """The answers of one batch."""
        parts = by_part(pool(encoder_end), self.parts)
        if self.join == "concat":
            parts = parts.flatten(1)
        elif self.parts == 1:
            parts = parts.squeeze(1)
        answer: Tensor = self.linear(parts)
        return answer


def build_answerer(task: PretextTask, spec: NetworkSpec, info: NetworkInfo) -> Answerer:
    """The head that `task` asks for, fitted to the network; refuses dense answers of networks without a dense output."""
    with blame(type(task), f"head of '{task.name}'"):
        head = task.head()
    if isinstance(head, PooledHead):
        return Answerer(PooledAnswer(info.embedding_width, head), "encoder_end", owned=False, kind=head)
    if isinstance(head, ModuleHead):
        if head.reads == "feature_map":
            require_dense(info, spec, f"the task '{task.name}' reads the dense feature map")
        owned = any(module is head.module for module in task.modules())
        return Answerer(head.module, head.reads, owned, head)
    if isinstance(head, DenseHead):
        require_dense(info, spec, f"the task '{task.name}' answers for every voxel")
        _, donor = dense_head(spec, head.channels)
        return Answerer(donor, "feature_map", owned=False, kind=head)
    raise PluginError(
        f"{provider_of(type(task))}: head() of '{task.name}' gave {type(head).__name__}, not a DenseHead, PooledHead or ModuleHead."
    )


def require_dense(info: NetworkInfo, spec: NetworkSpec, why: str) -> None:
    """Raise `NetworkError` where the network has no dense output."""
    if info.feature_width == 0:
        raise NetworkError(
            f"{why}, and {spec} has no dense output: it is an encoder with a pooled head. "
            "Take a segmentation network (SegResNet, UNet, DynUNet, BasicUNet), or tasks and losses on embeddings "
            "(such as relative-position, simsiam)."
        )


__all__ = ["Answerer", "PooledAnswer", "Reads", "build_answerer", "require_dense"]
