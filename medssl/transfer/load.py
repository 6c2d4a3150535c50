"""Pretrained weights into a plain network with new outputs, with a report of every tensor and an error where too little fits.

Users of peers trained for days on weights that were never loaded (`strict=False` and nothing matched). So here values are compared
after loading, heads never load into new heads, and everything else loads or is an error, unless it is said what may begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medssl.errors import TransferError, UsageError
from medssl.networks import Matched, NetworkSpec, as_spec, head_tensors, load_matching, stem_tensors, stored_spec, unique_tensors
from medssl.transfer.names import best_renaming
from medssl.transfer.weights import Weights, read_weights

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
    made: tuple[str, ...]
    """Tensors of the network that are no weights: whole numbers, such as the counters of batch norms."""
    elements: dict[str, int]
    """Tensor of the network -> how many values it holds."""
    coverage: float
    """Share of the values outside the head that were loaded; 0 .. 1."""
    names: str = "as they are"
    """What was taken off or put in front of the checkpoint's names."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of `new` that are neither head nor counters and tables, which a network makes itself: weights the checkpoint lacks."""
        apart = {*self.head, *self.made}
        return tuple(name for name in self.new if name not in apart)

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
            "names": self.names,
            "loaded": {"share": self.share(self.loaded), "tensors": list(self.loaded)},
            "new": {"share": self.share(self.new), "tensors": list(self.new), "head": list(self.head)},
            "left": self.left,
        }

    def __str__(self) -> str:
        missing = self.missing
        renamed = "" if self.names == "as they are" else f", names with {self.names}"
        lines = [
            f"{self.network} from {self.checkpoint}: {self.coverage:.1%} of the values outside the head{renamed}",
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
    min_coverage: float | None = None,
    trusted: Sequence[str] = (),
    *,
    allow_missing: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
) -> tuple[nn.Module, LoadReport]:
    """A plain network with the checkpoint's weights and a new head with `out_channels` outputs, and what was loaded.

    `network`: anything `as_spec` takes, or None for the network that the checkpoint says it holds. `checkpoint`: a run folder (its
    newest good checkpoint), a checkpoint folder, or a file of tensors. The head starts anew, even where its shape agrees. `trusted`:
    modules that a checkpoint may name its network in, beside MONAI's and those of installed plugins.

    Everything else must come from the checkpoint. `allow_missing` names what may begin anew, as patterns of tensor names
    (`["decoder*"]`); `min_coverage` (0 .. 1) instead asks for a share of the values alone. `rename` replaces parts of the checkpoint's
    names (`{"fc1": "linear1"}`); a prefix that all of them have, or lack, is seen through.

    Raises:
        TransferError: something is missing, or nothing was loaded at all; another number of input channels; weights with NaN; two
            networks in one file.
        UsageError: a pattern that fits no tensor of the network.
        CheckpointError, MissingInput: nothing there, or not readable without executing code from it.
    """
    if min_coverage is not None and not 0.0 <= min_coverage <= 1.0:
        raise UsageError(f"min_coverage is {min_coverage}; it is a share between 0 and 1.")
    weights = read_weights(checkpoint)
    spec = _spec(network, weights, trusted)
    built = spec.build(out_channels)
    targets = unique_tensors(built)
    _check_patterns(allow_missing, targets, spec)
    names = _renamed(weights, built, rename or {})
    given = {new: weights.tensors[name] for name, new in names.of.items()}
    heads = {*_head_of(spec, out_channels), *(names.of.get(name, name) for name in weights.head)}
    _check_stem(spec, given, targets, weights)
    matched = load_matching(built, given, heads)
    report = _report(spec, weights, matched, targets, heads, names.how)
    missing = [name for name in report.missing if not any(fnmatchcase(name, pattern) for pattern in allow_missing)]
    enough = matched.coverage >= min_coverage if min_coverage is not None else not missing
    if not any(name in targets and targets[name].is_floating_point() for name in matched.loaded) or not enough:
        raise TransferError(_too_little(spec, weights, report, given, targets, min_coverage, missing))
    return built, report


def _check_patterns(patterns: Sequence[str], targets: Mapping[str, Tensor], spec: NetworkSpec) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in targets):
            tops = sorted({name.partition(".")[0] for name in targets})
            raise UsageError(f"allow_missing: '{pattern}' fits no tensor of {spec}. Its names begin with: {', '.join(tops)}.")


def _spec(network: Any, weights: Weights, trusted: Sequence[str]) -> NetworkSpec:
    if network is not None:
        return as_spec(network)
    if weights.spec is None:
        raise TransferError(f"{weights.path} does not say what network it holds. Give the network: a NetworkSpec, a name or a partial.")
    return as_spec(stored_spec(weights.spec.model_dump(by_alias=True), f"the network in {weights.path}", trusted))


def _head_of(spec: NetworkSpec, out_channels: int | None) -> tuple[str, ...]:
    return head_tensors(spec if out_channels is None else spec.model_copy(update={"out_channels": out_channels}))


@dataclass(frozen=True)
class _Names:
    """The network's names of the checkpoint's tensors."""

    of: dict[str, str]
    how: str


def _renamed(weights: Weights, built: nn.Module, rename: Mapping[str, str]) -> _Names:
    """Each tensor of the checkpoint under the network's own name; what the prefix is not on keeps its name."""
    plain: dict[str, str] = {}
    for name in weights.tensors:
        new = name.replace("_orig_mod.", "")
        for part, other in rename.items():
            new = re.sub(rf"(?<![^.]){re.escape(part)}(?![^.])", lambda _, other=other: other, new)  # type: ignore[misc]
        plain[name] = new
    if len(set(plain.values())) < len(plain):
        twice = next(new for new in plain.values() if list(plain.values()).count(new) > 1)
        both = [name for name, new in plain.items() if new == twice]
        raise TransferError(f"{weights.path} holds two tensors for '{twice}': '{both[0]}' and '{both[1]}'. Rename them to two names.")
    renaming = best_renaming({new: weights.tensors[name] for name, new in plain.items()}, built.state_dict(), weights.path)
    changed = {name: renaming(new) for name, new in plain.items()}
    taken = {new for new in changed.values() if new is not None}
    kept = {name: plain[name] for name, new in changed.items() if new is None and plain[name] not in taken}
    return _Names({name: new for name, new in changed.items() if new is not None} | kept, str(renaming))


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


def _report(
    spec: NetworkSpec, weights: Weights, matched: Matched, targets: Mapping[str, Tensor], heads: set[str], names: str
) -> LoadReport:
    return LoadReport(
        checkpoint=str(weights.path),
        network=str(spec),
        loaded=matched.loaded,
        new=matched.new,
        head=tuple(name for name in matched.new if name in heads),
        left=matched.left,
        made=tuple(name for name in matched.new if not targets[name].is_floating_point()),
        names=names,
        elements={name: tensor.numel() for name, tensor in targets.items()},
        coverage=matched.coverage,
    )


def _too_little(
    spec: NetworkSpec,
    weights: Weights,
    report: LoadReport,
    given: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    min_coverage: float | None,
    missing: Sequence[str],
) -> str:
    """One message: how little, why as far as it can be told, the nearest mismatches, what to do."""
    share = f"{report.coverage:.1%}" if report.loaded else "nothing"
    why = _difference(spec, weights, given, targets)
    near = _nearest(report, given, targets)
    asked, parts = "everything" if min_coverage is None else f"at least {min_coverage:.0%}", _parts(missing, report, targets)
    lacking = f"Missing: {_listed(parts)}. " if parts else ""
    return (
        f"{share} of {spec} (its head aside) could be loaded from {weights.path}; {asked} was asked for. {why}{lacking}"
        + (f"Nearest: {'; '.join(near)}. " if near else "")
        + "Give the network that was pretrained, `rename` parts of names, or say what may begin anew by allow_missing"
        + (f": {parts[:_SHOWN]}." if parts else ".")
    )


def _parts(missing: Sequence[str], report: LoadReport, targets: Mapping[str, Tensor]) -> list[str]:
    """Patterns for the missing tensors: the largest parts of the network of which nothing was loaded."""
    lacking = set(missing)
    there = [name for name in targets if name not in lacking and name not in report.head and name not in report.made]
    found: dict[str, None] = {}
    for name in missing:
        pieces = name.split(".")
        starts = [".".join(pieces[:place]) + "." for place in range(1, len(pieces))]
        whole = next((start for start in starts if not any(other.startswith(start) for other in there)), None)
        found[name if whole is None else f"{whole}*"] = None
    return list(found)


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
    wanted = list(report.missing)
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
