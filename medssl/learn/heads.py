"""Heads: what turns features of the network into a task's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from medssl.contracts import DenseHead, Head, ModuleHead, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.errors import NetworkError, PluginError
from medssl.learn.ops import by_part, pool
from medssl.learn.promises import calling, check_answer, check_head, is_dense
from medssl.networks import NetworkSpec, dense_head, encoder_layout
from medssl.plugins import Plugins, provider_of


@dataclass(frozen=True)
class BuiltHead:
    """A task's head as a module, and the features that it reads."""

    module: nn.Module
    reads: tuple[str, ...]
    kind: Head
    owned: bool
    """Whether the task itself holds the module (and so already saves it)."""

    @property
    def dense(self) -> bool:
        """Whether it answers for every voxel."""
        return is_dense(self.kind)

    @property
    def parts(self) -> int:
        """Inputs that it reads for each crop."""
        return self.kind.parts if isinstance(self.kind, PooledHead | ModuleHead) else 1

    def answer(self, module: nn.Module, features: Mapping[str, Tensor], task: PretextTask, key: str, batch: PretextBatch) -> Tensor:
        """The answer of `module`, this head's own or the teacher's copy of it, in float32."""
        read = [features[name] for name in self.reads]
        if not isinstance(self.kind, ModuleHead):
            answer: Tensor = module(*read)
            return answer.float()
        with calling(task, key, "the module of head()"):
            answer = module(*read, batch) if self.kind.sees_batch else module(*read)
        check_answer(answer, task, key)
        return answer.float()


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


def build_head(key: str, task: PretextTask, spec: NetworkSpec, info: NetworkInfo, plugins: Plugins | None = None) -> BuiltHead:
    """The head that `task` asks for, fitted to the network; refuses what the network cannot give."""
    with calling(task, key, "head"):
        head = task.head()
    check_head(head, task, key)
    if isinstance(head, PooledHead | ModuleHead) and head.parts > 1 and "teacher_answer" in task.needs:
        raise PluginError(
            f"{provider_of(type(task))}: the teacher sees the whole crop, and the head of '{key}' needs {head.parts} parts to answer. "
            'Ask for its features instead: needs = frozenset({"teacher"}).'
        )
    if isinstance(head, PooledHead):
        require_encoder(info, spec, plugins)
        return BuiltHead(PooledAnswer(info.embedding_width, head), head.features, head, owned=False)
    if isinstance(head, ModuleHead):
        if "feature_map" in head.features:
            require_dense(info, spec, f"the task '{key}' reads the dense feature map")
        owned = any(module is head.module for module in task.modules())
        return BuiltHead(head.module, head.features, head, owned)
    if isinstance(head, DenseHead):
        require_dense(info, spec, f"the task '{key}' answers for every voxel")
        _, donor = dense_head(spec, head.channels)
        return BuiltHead(donor, head.features, head, owned=False)
    return BuiltHead(nn.Identity(), head.features, head, owned=False)


def require_encoder(info: NetworkInfo, spec: NetworkSpec, plugins: Plugins | None) -> None:
    """Raise `NetworkError`, with the fix, where it is not known where the encoder ends."""
    if info.embedding_width == 0:
        encoder_layout(spec.skeleton(), plugins, spec)


def require_dense(info: NetworkInfo, spec: NetworkSpec, why: str) -> None:
    """Raise `NetworkError` where the network has no dense output."""
    if info.feature_width == 0:
        raise NetworkError(
            f"{why}, and {spec} has no dense output: it is an encoder with a pooled head. "
            "Take a segmentation network (SegResNet, UNet, DynUNet, BasicUNet), or tasks and losses on embeddings "
            "(such as relative-position, simsiam)."
        )
