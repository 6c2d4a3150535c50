"""How the terms of a run share its steps: as a weighted sum, balanced by the size of their gradients, or taking turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from medssl.learn.joining import summed

Combine = Literal["sum", "balanced", "turns"]
Gradients = dict[str, list[Tensor | None]]
"""By term: the gradient of its loss by each parameter; None where it does not reach that parameter."""
MEASURE_EVERY = 10
"""Steps between two measurements of gradients: each costs one backward pass a term."""
KEPT = 0.9
"""Share of the sizes before that a measurement leaves."""
MOST = 100.0
"""A term whose gradient all but vanishes is solved, not starved: nothing is raised or lowered by more than this."""
_GOLDEN = (sqrt(5) - 1) / 2


def turn(weights: Mapping[str, float], step: int) -> str:
    """The term that has the step to itself: each as often as its weight says, evenly spread, and a function of the step alone."""
    place = (step + 0.5) * _GOLDEN % 1 * sum(weights.values())
    return next((key for key, end in zip(weights, accumulate(weights.values()), strict=True) if place < end), list(weights)[-1])


class Balance(nn.Module):
    """Keeps how large the gradient of each term is, and gives the factors that make them equally large.

    Sizes are taken over the parameters that all terms reach: a decoder that only one of them trains has no say.
    After GradNorm (Chen et al., ICML 2018), with equal training rates and without learning the factors.
    """

    sizes: Tensor

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__()
        self.keys = tuple(keys)
        self.register_buffer("sizes", torch.zeros(len(self.keys)))

    def factors(self) -> dict[str, Tensor]:
        """By term; 1 where nothing was measured yet, or the term had no gradient (a queue that is filling up)."""
        known = self.sizes > 0
        logs = torch.where(known, self.sizes, torch.ones_like(self.sizes)).log()
        mean = (logs * known).sum() / known.sum().clamp_min(1)
        factors = torch.where(known, (mean - logs).exp().clamp(1 / MOST, MOST), torch.ones_like(logs))
        return dict(zip(self.keys, factors.unbind(), strict=True))

    @torch.no_grad()
    def update(self, measured: Sequence[Gradients], parameters: Sequence[Tensor]) -> None:
        """After a step that was taken, with the gradients of each of its micro batches; they are added up over the ranks.

        A term may reach other `parameters` in one micro batch or rank than in the next, or none (a queue that is filling up). Which ones
        count is settled over all of them first, so that all ranks add up the same.
        """
        reached = summed(torch.stack([_reached(key, measured, parameters) for key in self.keys])) > 0
        numbers = [number for number, places in enumerate(reached) if places.any()]
        if not numbers:
            return
        by_all = reached[numbers].all(dim=0)
        places = (by_all if by_all.any() else torch.ones_like(by_all)).nonzero().flatten().tolist()
        for number in numbers:
            size, before = summed(_added(self.keys[number], measured, parameters, places)).norm(), self.sizes[number]
            self.sizes[number] = torch.where(before > 0, KEPT * before + (1 - KEPT) * size, size)


def _reached(key: str, measured: Sequence[Gradients], parameters: Sequence[Tensor]) -> Tensor:
    """For each of `parameters` 1 where the term reaches it in some micro batch."""
    rows = [one[key] for one in measured if key in one]
    return torch.tensor([float(any(row[place] is not None for row in rows)) for place in range(len(parameters))])


def _added(key: str, measured: Sequence[Gradients], parameters: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """The gradient of the term over all micro batches, by the parameters at `places`, as one vector."""
    rows = [one[key] for one in measured if key in one]
    sums = []
    for place in places:
        found = [gradient for row in rows if (gradient := row[place]) is not None]
        sums.append(torch.stack(found).sum(dim=0) if found else torch.zeros_like(parameters[place]))
    return torch.cat([one.flatten() for one in sums])


def gradients_of(terms: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> Gradients:
    """The gradient of each of `terms` that reaches one of the parameters; the graph stays for the backward pass."""
    rows: Gradients = {
        key: list(torch.autograd.grad(term, list(parameters), retain_graph=True, allow_unused=True))
        for key, term in terms.items()
        if term.requires_grad
    }
    return {key: row for key, row in rows.items() if any(gradient is not None for gradient in row)}
