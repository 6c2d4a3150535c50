"""Pretrained weights into a plain network with new outputs, with a report of every tensor and an error where too little fits.

Users of peers trained for days on weights that were never loaded (`strict=False` and nothing matched). So here values are compared
after loading, heads never load into new heads, and a coverage under the stated share is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medssl.errors import TransferError, UsageError
from medssl.networks import Matched, NetworkSpec, as_spec, head_tensors, load_matching, stem_tensors, stored_spec, unique_tensors
from medssl.transfer.weights import Weights, read_weights, seen_through

_SHOWN = 6


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor; `str(report)` is for people, `document()` for files."""

    checkpoint: str
    network: str
    loaded: tuple[str, ...]
    """Tensors of the network that now hold the checkpoint's values, compared after loading."""
    new: tuple[str, ...]
    """Tensors of the network that keep their first values: its head, and what the checkpoint did not have."""
    head: tuple[str, ...]
    """Those of `new` that are the head."""
    left: dict[str, str]
    """Tensors of the checkpoint that were not used -> why."""
    elements: dict[str, int]
    """Tensor of the network -> how many values it holds."""
    coverage: float
    """Share of the values outside the head that were loaded; 0 .. 1."""

    def share(self, names: Iterable[str]) -> float:
        """What part of the network's values these tensors hold; 0 .. 1."""
        total = sum(self.elements.values())
        return sum(self.elements[name] for name in names) / total if total else 0.0

    def document(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {
            "checkpoint": self.checkpoint,
            "network": self.network,
            "coverage": self.coverage,
            "loaded": {"share": self.share(self.loaded), "tensors": list(self.loaded)},
            "new": {"share": self.share(self.new), "tensors": list(self.new), "head": list(self.head)},
            "left": self.left,
        }

    def __str__(self) -> str:
        missing = [name for name in self.new if name not in set(self.head)]
        lines = [
            f"{self.network} from {self.checkpoint}: {self.coverage:.1%} of the values outside the head",
            f"  loaded {len(self.loaded):4d} tensors ({self.share(self.loaded):.1%} of all values), compared after loading",
            f"  new    {len(self.head):4d} tensors ({self.share(self.head):.1%}), the head: {_listed(self.head)}",
        ]
        if missing:
            lines.append(f"  new    {len(missing):4d} tensors ({self.share(missing):.1%}), not in the checkpoint: {_listed(missing)}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault("of another shape" if reason.startswith("shape") else reason, []).append(name)
        lines += [f"  left   {len(names):4d} tensors of the checkpoint, {reason}: {_listed(names)}" for reason, names in reasons.items()]
        return "\n".join(lines)


def load_pretrained(
    network: Any,
    checkpoint: str | Path,
    out_channels: int | None = None,
    min_coverage: float = 0.5,
    trusted: Sequence[str] = (),
) -> tuple[nn.Module, LoadReport]:
    """A plain network with the checkpoint's weights and a new head with `out_channels` outputs, and what was loaded.

    `network`: anything `as_spec` takes, or None for the network that the checkpoint says it holds. `checkpoint`: a run folder (its
    newest good checkpoint), a checkpoint folder, or a file of tensors. The head starts anew, even where its shape agrees. `trusted`:
    modules that a checkpoint may name its network in, beside MONAI's and those of installed plugins.

    Raises:
        TransferError: less than `min_coverage` (0 .. 1) of the values outside the head was loaded, or nothing at all; another number
            of input channels; weights with NaN.
        CheckpointError, MissingInput: nothing there, or not readable without executing code from it.
    """
    if not 0.0 <= min_coverage <= 1.0:
        raise UsageError(f"min_coverage is {min_coverage}; it is a share between 0 and 1.")
    weights = read_weights(checkpoint)
    spec = _spec(network, weights, trusted)
    built = spec.build(out_channels)
    targets = unique_tensors(built)
    given = _renamed(weights, targets, built)
    heads = {*_head_of(spec, out_channels), *(seen_through(name, targets) for name in weights.head)}
    _check_stem(spec, given, targets, weights)
    matched = load_matching(built, given, heads)
    report = _report(spec, weights, matched, targets, heads)
    if not any(name in targets and targets[name].is_floating_point() for name in matched.loaded) or matched.coverage < min_coverage:
        raise TransferError(_too_little(spec, weights, report, given, targets, min_coverage))
    return built, report


def _spec(network: Any, weights: Weights, trusted: Sequence[str]) -> NetworkSpec:
    if network is not None:
        return as_spec(network)
    if weights.spec is None:
        raise TransferError(f"{weights.path} does not say what network it holds. Give the network: a NetworkSpec, a name or a partial.")
    return as_spec(stored_spec(weights.spec.model_dump(by_alias=True), f"the network in {weights.path}", trusted))


def _head_of(spec: NetworkSpec, out_channels: int | None) -> tuple[str, ...]:
    return head_tensors(spec if out_channels is None else spec.model_copy(update={"out_channels": out_channels}))


def _renamed(weights: Weights, targets: Mapping[str, Tensor], built: nn.Module) -> dict[str, Tensor]:
    """The checkpoint's tensors under the network's own names; two that come to the same name are an error."""
    known = {**dict.fromkeys(built.state_dict()), **dict.fromkeys(targets)}
    renamed: dict[str, str] = {}
    for name in weights.tensors:
        plain = seen_through(name, known)
        if plain in renamed:
            raise TransferError(
                f"{weights.path} holds two tensors for '{plain}': '{renamed[plain]}' and '{name}'. Save the one network you mean by itself."
            )
        renamed[plain] = name
    return {plain: weights.tensors[name] for plain, name in renamed.items()}


def _check_stem(spec: NetworkSpec, given: Mapping[str, Tensor], targets: Mapping[str, Tensor], weights: Weights) -> None:
    """A stem that stays random makes the rest worthless, though it is a small share: another number of inputs is refused."""
    for name in stem_tensors(spec):
        if name not in given or name not in targets or given[name].dim() < 2:
            continue
        theirs, ours = given[name].shape, targets[name].shape
        if theirs[1] != ours[1] and (theirs[0], *theirs[2:]) == (ours[0], *ours[2:]):
            raise TransferError(
                f"{weights.path} holds a network for other input channels: '{name}' has shape {tuple(theirs)}, that of {spec} with "
                f"in_channels {spec.in_channels} has {tuple(ours)}. Give the network the number of input channels it was pretrained with."
            )


def _report(spec: NetworkSpec, weights: Weights, matched: Matched, targets: Mapping[str, Tensor], heads: set[str]) -> LoadReport:
    return LoadReport(
        checkpoint=str(weights.path),
        network=str(spec),
        loaded=matched.loaded,
        new=matched.new,
        head=tuple(name for name in matched.new if name in heads),
        left=matched.left,
        elements={name: tensor.numel() for name, tensor in targets.items()},
        coverage=matched.coverage,
    )


def _too_little(
    spec: NetworkSpec,
    weights: Weights,
    report: LoadReport,
    given: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    min_coverage: float,
) -> str:
    """One message: how little, why as far as it can be told, the nearest mismatches, what to do."""
    share = f"{report.coverage:.1%}" if report.loaded else "nothing"
    why = _difference(spec, weights, given, targets)
    near = _nearest(report, given, targets)
    return (
        f"{share} of {spec} (its head aside) could be loaded from {weights.path}; at least {min_coverage:.0%} was asked for. {why}"
        + (f"Nearest: {'; '.join(near)}. " if near else "")
        + "Give the network that was pretrained, or lower min_coverage if a part is all you want."
    )


def _difference(spec: NetworkSpec, weights: Weights, given: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> str:
    dims = [(given[name].dim() - 2, targets[name].dim() - 2) for name in targets if name in given and given[name].dim() > 3]
    unequal = next(((theirs, ours) for theirs, ours in dims if theirs != ours), None)
    if unequal is not None:
        return f"The checkpoint is in {unequal[0]}D, the network in {unequal[1]}D: give spatial_dims: {unequal[0]}. "
    if weights.spec is None:
        return ""
    theirs, ours = as_flat(weights.spec), as_flat(spec)
    different = [
        key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key) and key not in ("out_channels", "head", "encoder_end")
    ]
    shown = [f"{key} is {_value(theirs.get(key))} there and {_value(ours.get(key))} here" for key in different[:_SHOWN]]
    return f"The networks differ: {', '.join(shown)}. " if shown else ""


def as_flat(spec: NetworkSpec) -> dict[str, Any]:
    """Fields and options of a specification in one mapping, `options.init_filters` -> 16."""
    document = spec.model_dump(mode="json", by_alias=True)
    options = document.pop("options")
    return {**document, **{f"options.{key}": value for key, value in options.items()}}


def _value(value: Any) -> str:
    return "not given" if value is None else str(value)


def _nearest(report: LoadReport, given: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    wanted = [name for name in report.new if name not in set(report.head)]
    near = [f"'{name}' is {tuple(given[name].shape)} there and {tuple(targets[name].shape)} here" for name in wanted if name in given]
    for name in wanted[: 4 * _SHOWN]:
        if len(near) >= _SHOWN // 2:
            break
        like = get_close_matches(name, [other for other in report.left if other not in targets], n=1, cutoff=0.5)
        near += [f"'{name}' is not there, '{like[0]}' is"] if like and name not in given else []
    return near[: _SHOWN // 2]


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more if every else "none"
