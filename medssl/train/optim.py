"""Optimizers, learning-rate schedules as pure functions of the step, and optimizer state without pickle.

AdamW: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019. Cosine: the same authors, "SGDR", ICLR 2017.
Poly: Chen et al., "DeepLab", TPAMI 2018, as nnU-Net uses it. One cycle: Smith and Topin, "Super-convergence", 2018, with the cosines
and divisors of fastai and PyTorch; the momentum stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medssl.errors import CheckpointError

OptimizerName = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "poly", "constant", "one-cycle"]
POLY_POWER = 0.9
CYCLE_START, CYCLE_END = 25.0, 25e4
"""What the peak is divided by at the beginning and the end of a cycle."""

_MOMENTS: dict[type, dict[str, bool]] = {
    torch.optim.AdamW: {"step": False, "exp_avg": True, "exp_avg_sq": True},
    torch.optim.SGD: {"momentum_buffer": True},
}
"""What each optimizer keeps of a parameter, and whether that has the parameter's shape."""
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(module: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None) -> list[dict[str, object]]:
    """The trainable parameters in groups: weights that decay, and biases and norms, which do not, each of every scale.

    `scales` maps names of parameters to what their learning rate is multiplied by; others have 1.
    """
    norms = {id(p) for m in module.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    trainable = [p for p in module.parameters() if p.requires_grad]
    free = [p for p in trainable if p.dim() <= 1 or id(p) in norms]
    excluded = {id(p) for p in free}
    decayed = [p for p in trainable if id(p) not in excluded]
    scale_of = {id(p): (scales or {}).get(name, 1.0) for name, p in module.named_parameters()}
    groups: list[dict[str, object]] = []
    for parameters, decay in ((decayed, weight_decay), (free, 0.0)):
        for scale in sorted({scale_of[id(p)] for p in parameters}, reverse=True):
            groups.append({"params": [p for p in parameters if scale_of[id(p)] == scale], "weight_decay": decay, "scale": scale})
    return groups


def make_optimizer(
    parameters: Iterable[Mapping[str, object]],
    name: OptimizerName,
    learning_rate: float,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over groups as `parameter_groups` makes them.

    A group may carry `scale`, a factor on the learning rate (discriminative rates), which `set_learning_rate` keeps.
    """
    groups = [dict(group) for group in parameters]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)


def learning_rate_at(step: int, steps: int, peak: float, warmup: float, schedule: Schedule) -> float:
    """The learning rate of a step (from 0) of a run of `steps`: linear warm-up over the share `warmup`, then the schedule down to 0."""
    if schedule == "one-cycle":
        return _one_cycle(step, steps, peak, warmup)
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    done = (step - rising) / max(steps - rising, 1)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "poly":
        return float(peak * max(1 - done, 0.0) ** POLY_POWER)
    return peak


def _one_cycle(step: int, steps: int, peak: float, warmup: float) -> float:
    """Up from a 25th of the peak by half a cosine over the share `warmup`, and down by another to next to nothing."""
    top = max(warmup * steps - 1, 0.0)
    if step < top:
        start, end, done = peak / CYCLE_START, peak, step / top
    else:
        start, end, done = peak, peak / CYCLE_END, (step - top) / max(steps - 1 - top, 1.0)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group that rate, times its `scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("scale", 1.0)


def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> float:
    """The norm of all gradients before they were scaled down to `limit` (None: left as they are).

    Infinite or NaN where a gradient is; the gradients are of no use then.
    """
    return float(nn.utils.clip_grad_norm_(list(parameters), math.inf if limit is None else limit))


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's memory as `PARAMETER/moment` -> tensor; rates are functions of the step and need no saving."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; `CheckpointError` for what this optimizer does not keep, or only a part of it."""
    moments = _MOMENTS[type(optimizer)]
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in module.named_parameters() if id(p) in mine}
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint's optimizer remembers '{name}', which this run does not train. Is it of another run?")
        parameter = parameters[name]
        shape = parameter.shape if moments.get(key) else torch.Size()
        if key not in moments or value.shape != shape or not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"the checkpoint's optimizer remembers '{full}' as {list(value.shape)} ({kind}), which is nothing that it keeps of a "
                f"parameter of {list(parameter.shape)}. Is it of another run?"
            )
        where = parameter.device if value.dim() else value.device
        optimizer.state[parameter][key] = value.to(where).clone()
    torn = [name for name, parameter in parameters.items() if 0 < len(optimizer.state.get(parameter, {})) < len(moments)]
    if torn:
        raise CheckpointError(f"the checkpoint's optimizer remembers only a part of '{torn[0]}'. Go on from an earlier checkpoint.")
