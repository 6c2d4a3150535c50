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
from medssl.errors import ConfigError
from medssl.learn.promises import calling, check_built, check_loss
from medssl.learn.teacher import EMATeacher
from medssl.monai import given
from medssl.monai.crops import unseen_crops
from medssl.monai.tasks import ELSEWHERE, loss_class
from medssl.plugins import blame

Answers = Literal["values", "logits"]
Distance = Literal["l2", "kl", "cosine"]


class ConsistencyOnTensors(nn.Module):
    """An installed consistency loss: `loss(one, other)` is one number, the mean over the batch.

    What it compares, answers (B, K, ...), embeddings (B, E) or feature maps (B, F, *grid) of views that lie on one grid, the loss
    itself says (`compares`); its projectors are built for `width` channels. A loss with a teacher takes `teacher=(one, other)` too, what
    the teacher made of the same views, and keeps a moving average of its own projector. `commit()` after a step that was taken lets
    queues, centres and that average follow.

    Args:
        loss: name of an installed consistency loss, or its class.
        width: channels of embeddings or feature maps.
        spatial_dims: of feature maps; dense answers say it themselves.
        options: the loss's own options.
    """

    _samples: Tensor
    """() int64: how many samples were committed; the next ones are numbered on from there, so that none is taken for an earlier one."""

    def __init__(self, loss: str | type[ConsistencyLoss], *, width: int = 1, spatial_dims: int = 3, **options: Any) -> None:
        super().__init__()
        cls = loss_class(loss)
        given.count_given(width, "width")
        given.count_given(spatial_dims, "spatial_dims", 2, 3)
        kinds = [kind for kind in ("answers", "embeddings", "feature_maps") if kind in cls.needs]
        if len(kinds) != 1 or cls.needs - {kinds[0], "teacher"}:
            raise ConfigError(f"'{cls.name}' needs {', '.join(sorted(cls.needs))}, which plain tensors do not say. {ELSEWHERE}")
        self.compares: Any = kinds[0]
        network = NetworkInfo(spatial_dims, 1, width, width, (1,) * spatial_dims, (1,) * spatial_dims)
        checked = check(cls.Options, options, f"options of '{cls.name}'")
        with blame(cls, "__init__"):
            self.loss: Any = cls(checked, network)
        check_built(self.loss, cls.name)
        self.register_buffer("_samples", torch.zeros((), dtype=torch.int64))
        self.followed = nn.ModuleDict({name: EMATeacher(getattr(self.loss, name)) for name in cls.teacher_follows})
        self._last: Views | None = None

    def forward(
        self,
        *views: Tensor,
        teacher: Sequence[Tensor] = (),
        kind: Answers = "logits",
        shown: Tensor | None = None,
        patient: Tensor | None = None,
    ) -> Tensor:
        """() of two or more views; `kind` says what answers are, `shown` (B, 1, *size) which voxels count, `patient` (B,) whose each is."""
        name, network = self.loss.name, self.loss.network
        given.one_of(kind, Answers, "kind")
        compared = given.views_given(views, self.compares, network)
        given.check_weights(compared[0], self.loss, f"'{name}'")
        taught = given.teacher_given(teacher, compared, "teacher" in self.loss.needs, name)
        mask = given.shown_given(shown, compared[0])
        crops = self._crops(compared[0], given.patient_given(patient, len(compared[0])))
        seen = self._views(crops, compared, kind, mask)
        if taught:
            copies: Any = {name: copy.module for name, copy in self.followed.items()}
            seen = replace(seen, teacher=replace(self._views(crops, taught, kind, mask), modules=copies))
        with calling(self.loss, name, "forward", crops):
            value: Tensor = self.loss(seen)
        check_loss(value, self.loss, name, "forward()", compared[0])
        self._last = seen.detach()
        return value.mean()

    def commit(self, progress: float = 0.0) -> None:
        """After a step that was taken: queues, banks and centres take in the last views, the teacher's projector follows."""
        if isinstance(progress, bool) or not isinstance(progress, int | float) or not 0 <= progress <= 1:
            raise ConfigError(f"progress is {progress!r}; it is how far the training is, between 0 and 1.")
        copies: Any = self.followed.items()
        for name, copy in copies:
            copy.update(getattr(self.loss, name), self.loss.teacher_momentum(progress))
        if self._last is not None:
            with torch.no_grad(), calling(self.loss, self.loss.name, "commit"):
                self.loss.commit(self._last)
            self._samples += len(self._last.crops)
        self._last = None

    def _crops(self, view: Tensor, patient: Tensor | None) -> Crops:
        """What the views are of: as many crops, on the views' own grid."""
        size = view.shape[2:] if view.dim() > 3 else (1,) * self.loss.network.spatial_dims
        return unseen_crops(size, torch.arange(len(view), device=view.device) + self._samples.to(view.device), patient)

    def _views(self, crops: Crops, views: Sequence[Tensor], kind: Answers, shown: Tensor | None) -> Views:
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
        spatial_dims: of the network; dense answers say it themselves.
    """

    def __init__(
        self,
        kind: Distance = "l2",
        answers: Answers = "logits",
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        given.one_of(kind, Distance, "kind")
        given.one_of(answers, Answers, "answers")
        if (kind, answers) == ("kl", "values"):
            raise ConfigError('kind="kl" compares classes, and answers="values" are none. Take kind="l2" or "cosine".')
        self.answers: Answers = answers
        self.compared = ConsistencyOnTensors("agreement", spatial_dims=spatial_dims, distance=kind)

    def forward(self, student: Tensor, teacher: Tensor, shown: Tensor | None = None) -> Tensor:
        """() of two answers (B, K, ...); `shown` (B, 1, *size) says which voxels count."""
        taught = given.real_given(teacher, "the teacher's answer", "Give what the teacher answers to the same images.").detach()
        loss: Tensor = self.compared(student, taught, kind=self.answers, shown=shown)
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
