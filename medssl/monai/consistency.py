"""Consistency losses on plain tensors: the very classes that medssl's own training uses, in a training loop of yours.

loss = AgreementLoss(kind="kl")                          # loss(student_logits, teacher_logits)
loss = ConsistencyOnTensors("simsiam", width=128)        # loss(one_embedding, other_embedding)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medssl.augment import identity
from medssl.config import check
from medssl.contracts import ConsistencyLoss, Crops, NetworkInfo, Views
from medssl.errors import ConfigError, DataError
from medssl.learn.teacher import EMATeacher
from medssl.monai.crops import crops_of
from medssl.monai.tasks import ELSEWHERE
from medssl.plugins import Plugins, blame

Kind = Literal["answers", "embeddings", "feature_maps"]


class ConsistencyOnTensors(nn.Module):
    """An installed consistency loss: `loss(one, other)` is one number, the mean over the batch.

    What it compares, answers (B, K, ...), embeddings (B, E) or feature maps (B, F, *grid) of views that lie on one grid, the loss
    itself says (`compares`); its projectors are built for `width` channels. A loss with a teacher takes `teacher=(one, other)` too, what
    the teacher made of the same views, and keeps a moving average of its own projector. `commit()` after a step that was taken lets
    queues, centres and that average follow.

    Args:
        loss: name of an installed consistency loss, or its class.
        width: channels of embeddings or feature maps.
        spatial_dims: of feature maps and dense answers.
        options: the loss's own options.
    """

    def __init__(self, loss: str | type[ConsistencyLoss], *, width: int = 1, spatial_dims: int = 3, **options: Any) -> None:
        super().__init__()
        cls = Plugins.load().loss(loss) if isinstance(loss, str) else loss
        kinds = [kind for kind in ("answers", "embeddings", "feature_maps") if kind in cls.needs]
        if len(kinds) != 1 or cls.needs - {kinds[0], "teacher"}:
            raise ConfigError(f"'{cls.name}' needs {', '.join(sorted(cls.needs))}, which plain tensors do not say. {ELSEWHERE}")
        self.compares: Any = kinds[0]
        network = NetworkInfo(spatial_dims, 1, width, width, (1,) * spatial_dims, (1,) * spatial_dims)
        checked = check(cls.Options, options, f"options of '{cls.name}'")
        with blame(cls, "__init__"):
            self.loss: Any = cls(checked, network)
        self.followed = nn.ModuleDict({name: EMATeacher(getattr(self.loss, name)) for name in cls.teacher_follows})
        self._last: Views | None = None

    def forward(
        self,
        *views: Tensor,
        teacher: Sequence[Tensor] = (),
        kind: Literal["values", "logits"] = "logits",
        shown: Tensor | None = None,
        patient: Tensor | None = None,
    ) -> Tensor:
        """() of two or more views; `kind` says what answers are, `shown` (B, 1, *size) which voxels count, `patient` whose each is."""
        if len(views) < 2 or any(view.shape != views[0].shape for view in views):
            raise DataError(f"two or more views of one shape are compared, not {[tuple(view.shape) for view in views]}.")
        if ("teacher" in self.loss.needs) != bool(teacher):
            how = "" if "teacher" in self.loss.needs else "no "
            raise DataError(f"'{self.loss.name}' takes {how}teacher=(...): what it made of the views.")
        crops = _crops(views[0], self.loss.network.spatial_dims, patient)
        given = self._views(crops, views, kind, shown)
        if teacher:
            taught = self._views(crops, [view.detach() for view in teacher], kind, shown)
            copies: Any = {name: copy.module for name, copy in self.followed.items()}
            given = replace(given, teacher=replace(taught, modules=copies))
        with blame(type(self.loss), "forward"):
            value: Tensor = self.loss(given)
        self._last = given.detach()
        return value.mean()

    def commit(self, progress: float = 0.0) -> None:
        """After a step that was taken: queues, banks and centres take in the last views, the teacher's projector follows."""
        copies: Any = self.followed.items()
        for name, copy in copies:
            copy.update(getattr(self.loss, name), self.loss.teacher_momentum(progress))
        if self._last is not None:
            with torch.no_grad(), blame(type(self.loss), "commit"):
                self.loss.commit(self._last)
        self._last = None

    def _views(self, crops: Crops, views: Sequence[Tensor], kind: Literal["values", "logits"], shown: Tensor | None) -> Views:
        answers = self.compares == "answers"
        dense = views[0].dim() == crops.spatial_dims + 2
        if shown is None and dense:
            shown = torch.ones((len(crops), 1, *crops.size), dtype=torch.bool, device=views[0].device)
        eye = identity(len(crops), crops.spatial_dims, views[0].device)
        return Views(
            crops=crops,
            answers={"answer": tuple(views)} if answers else {},
            kinds={"answer": kind} if answers else {},
            embeddings=tuple(views) if self.compares == "embeddings" else (),
            feature_maps=tuple(views) if self.compares == "feature_maps" else (),
            affines=torch.stack([eye] * len(views)),
            shown=shown,
        )


class AgreementLoss(nn.Module):
    """The loss `agreement` between a student's answer and a teacher's, through which no gradient flows.

    Args:
        kind: l2 (of probabilities, or of values), kl (symmetric, between classes) or cosine.
        answers: "logits" of classes, or "values".
        spatial_dims: of dense answers.
    """

    def __init__(
        self,
        kind: Literal["l2", "kl", "cosine"] = "l2",
        answers: Literal["values", "logits"] = "logits",
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        self.answers: Literal["values", "logits"] = answers
        self.compared = ConsistencyOnTensors("agreement", spatial_dims=spatial_dims, distance=kind)

    def forward(self, student: Tensor, teacher: Tensor, shown: Tensor | None = None) -> Tensor:
        """() of two answers (B, K, ...); `shown` (B, 1, *size) says which voxels count."""
        loss: Tensor = self.compared(student, teacher.detach(), kind=self.answers, shown=shown)
        return loss


class DenseAgreementLoss(nn.Module):
    """The loss `dense-agreement` between two feature maps (B, width, *grid) of the same voxels.

    Args:
        width: channels of the feature maps.
        spatial_dims: of the feature maps.
        options: the loss's own options.
    """

    def __init__(self, width: int, spatial_dims: int = 3, **options: Any) -> None:
        super().__init__()
        self.compared = ConsistencyOnTensors("dense-agreement", width=width, spatial_dims=spatial_dims, **options)

    def forward(self, one: Tensor, other: Tensor, shown: Tensor | None = None) -> Tensor:
        """() mean over the batch; `shown` (B, 1, *grid) says which voxels count."""
        loss: Tensor = self.compared(one, other, shown=shown)
        return loss


def _crops(view: Tensor, dims: int, patient: Tensor | None) -> Crops:
    """What the views are of: as many crops, on the views' own grid."""
    size = view.shape[2:] if view.dim() == dims + 2 else (1,) * dims
    return crops_of(torch.zeros((len(view), 1, *size), device=view.device), patient=patient)
