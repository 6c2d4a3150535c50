"""Pretrained weights into a plain network with new outputs, with a report of every tensor and an error where too little fits.

Users of peers trained for days on weights that were never loaded (`strict=False` and nothing matched). So here values are compared
after loading, heads never load into new heads, and everything else loads or is an error, unless it is said what may begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medssl.config import did_you_mean
from medssl.errors import NetworkError, TransferError, UsageError
from medssl.networks import (
    Matched,
    NetworkSpec,
    as_spec,
    first_convolution,
    head_tensors,
    load_matching,
    stem_tensors,
    stored_spec,
    unique_tensors,
)
from medssl.networks.instances import said_by
from medssl.networks.names import network_names
from medssl.notebook import html_table
from medssl.train.weights import SAYS_NO_NETWORK, Source, Weights, read_weights

Stem = Literal["same", "repeat", "average", "new"]
_SHOWN = 6


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        rest = f"{len(self.new)} new ({len(self.head)} of them the head), {len(self.left)} left"
        return f"LoadReport({self.network} from {self.checkpoint}: {self.coverage:.1%}, {len(self.loaded)} tensors loaded, {rest})"

    def _repr_html_(self) -> str:
        loaded = [(name, "loaded", self.elements[name]) for name in self.loaded]
        new = [(name, "the head, new" if name in self.head else "new", self.elements[name]) for name in self.new]
        left = [(name, f"left: {reason}", "") for name, reason in self.left.items()]
        return html_table(repr(self), ("tensor", "what became of it", "values"), [*new, *left, *loaded])

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
    checkpoint: Source,
    out_channels: int | None = None,
    min_coverage: float | None = None,
    trusted: Sequence[str] = (),
    *,
    allow_missing: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    stem: Stem = "same",
) -> tuple[nn.Module, LoadReport]:
    """A plain network with the checkpoint's weights and a new head with `out_channels` outputs, and what was loaded.

    `network`: anything `as_spec` takes, or None for the network that the checkpoint says it holds. `checkpoint`: a run, its folder (its
    newest good checkpoint), a checkpoint folder, a file of tensors, or a state dict. The head starts anew, even where its shape agrees.
    `trusted`: modules that a checkpoint may name its network in, beside MONAI's and those of installed plugins.

    Everything else must come from the checkpoint. `allow_missing` names what may begin anew, as patterns of tensor names
    (`["decoder*"]`); `min_coverage` (0 .. 1) instead asks for a share of the values alone. `rename` replaces parts of the checkpoint's
    names (`{"fc1": "linear1"}`); a prefix that all of them have, or lack, is seen through. `stem` says what becomes of the layers that
    read the images where their number of channels is another one: refused ("same"), each channel repeated, all averaged for every
    channel, or new; repeated and averaged weights are scaled so that responses keep their size.

    Raises:
        TransferError: something is missing, or nothing was loaded at all; another number of input channels; weights with NaN; two
            networks in one file.
        UsageError: a pattern that fits no tensor of the network.
        CheckpointError, MissingInput: nothing there, or not readable without executing code from it.
    """
    if out_channels is not None and (isinstance(out_channels, bool) or not isinstance(out_channels, int) or out_channels < 1):
        raise UsageError(f"out_channels is {out_channels!r}; a whole number, 1 or more, is needed.")
    wanted = _wanted(min_coverage, allow_missing, rename, stem)
    weights = read_weights(checkpoint)
    spec = _spec(network, weights, trusted)
    built = spec.build(out_channels)
    return built, _load(built, spec, weights, _head_of(spec, out_channels), stem_tensors(spec), wanted)


def load_into(
    network: nn.Module,
    checkpoint: Source,
    min_coverage: float | None = None,
    *,
    allow_missing: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    stem: Stem = "same",
) -> LoadReport:
    """Load the checkpoint's weights into a network that exists, such as one that a bundle's configuration has made, in place.

    As `load_pretrained` otherwise: the head that the checkpoint names stays as it is in `network`. A file or state dict does not say
    which its head is: where it is for as many outputs, all of it is loaded; where for another number, the network's own head stays.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"load_into loads into a network that exists, not into {type(network).__name__}. load_pretrained builds one.")
    wanted = _wanted(min_coverage, allow_missing, rename, stem)
    weights = read_weights(checkpoint)
    return _load(network, None, weights, _deep_heads(network, weights), _first_layers(network, weights), wanted)


@dataclass(frozen=True)
class _Wanted:
    """How much must come, and how what comes is to be fitted."""

    min_coverage: float | None
    allow_missing: tuple[str, ...]
    rename: Mapping[str, str]
    stem: Stem


def _wanted(min_coverage: Any, allow_missing: Any, rename: Any, stem: Any) -> _Wanted:
    """What a call asks for; `UsageError` naming what cannot be."""
    number = isinstance(min_coverage, int | float) and not isinstance(min_coverage, bool)
    if min_coverage is not None and not (number and 0.0 <= min_coverage <= 1.0):
        raise UsageError(f"min_coverage is {min_coverage!r}; it is a share between 0 and 1.")
    if stem not in get_args(Stem):
        raise UsageError(f"stem is {stem!r}{did_you_mean(str(stem), get_args(Stem))}")
    if isinstance(allow_missing, str) or not isinstance(allow_missing, Sequence):
        raise UsageError(f'allow_missing is {allow_missing!r}; a list of patterns of tensor names is needed, such as ["decoder*"].')
    if rename is not None and not isinstance(rename, Mapping):
        raise UsageError(f'rename is {rename!r}; a dictionary from parts of names to others is needed, such as {{"fc1": "linear1"}}.')
    return _Wanted(min_coverage, tuple(allow_missing), rename or {}, stem)


def _load(
    network: nn.Module, spec: NetworkSpec | None, weights: Weights, head: Iterable[str], first: Iterable[str], wanted: _Wanted
) -> LoadReport:
    """Into `network`, of which `spec` is known or not, all but its `head`; `first` are the tensors of its stem."""
    least = wanted.min_coverage
    label, targets = str(spec or type(network).__name__), unique_tensors(network)
    _check_patterns(wanted.allow_missing, targets, label)
    names = network_names(weights.tensors, network.state_dict(), weights.path, wanted.rename)
    given = {new: weights.tensors[name] for name, new in names.of.items()}
    heads = {*head, *(names.of.get(name, name) for name in weights.head)}
    if spec is None and weights.spec is None and not heads:
        heads = _head_of_other_outputs(network, given, targets)
    given = _fitted_stem(first, given, targets, weights, wanted.stem)
    matched = load_matching(network, given, heads)
    report = _report(label, weights, matched, targets, heads, names.how)
    anew = (*wanted.allow_missing, *(first if wanted.stem == "new" else ()))
    missing = [name for name in report.missing if not any(fnmatchcase(name, pattern) for pattern in anew)]
    enough = matched.coverage >= least if least is not None else not missing
    if not any(name in targets and targets[name].is_floating_point() for name in matched.loaded) or not enough:
        raise TransferError(_too_little(spec, weights, report, given, targets, least, missing))
    return report


def _head_of_other_outputs(network: nn.Module, given: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> set[str]:
    """The head of a network that exists, where tensors alone, which say nothing of heads, hold one for another number of outputs."""
    differing = {name for name, tensor in given.items() if name in targets and tensor.shape != targets[name].shape}
    if not differing:
        return set()
    try:
        head = set(head_tensors(as_spec(network)))
    except NetworkError:  # its head cannot be found: what does not fit is told as missing
        return set()
    return head if head & differing else set()


def _deep_heads(network: nn.Module, weights: Weights) -> tuple[str, ...]:
    """The heads of a network with deep supervision, whose weights were learned without: pretraining turns it off."""
    if weights.spec is None or weights.spec.name is None:
        return ()
    options = weights.spec.options
    here = {key: value for key, value in said_by(network, ("deep_supervision", "dsdepth")).items() if options.get(key, value) != value}
    return head_tensors(weights.spec.model_copy(update={"options": {**options, **here}})) if here else ()


def _first_layers(network: nn.Module, weights: Weights) -> tuple[str, ...]:
    """The stem's tensors as the checkpoint's own network has them; for others the first convolution."""
    if weights.spec is not None and weights.spec.name is not None:
        return stem_tensors(weights.spec)
    found = first_convolution(network)
    return (f"{found[0]}.weight",) if found is not None else ()


def _check_patterns(patterns: Sequence[str], targets: Mapping[str, Tensor], network: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in targets):
            tops = sorted({name.partition(".")[0] for name in targets})
            raise UsageError(f"allow_missing: '{pattern}' fits no tensor of {network}. Its names begin with: {', '.join(tops)}.")


def _spec(network: Any, weights: Weights, trusted: Sequence[str]) -> NetworkSpec:
    if network is not None:
        return as_spec(network)
    if weights.spec is None:
        raise TransferError(f"{weights.path} {SAYS_NO_NETWORK}")
    return as_spec(stored_spec(weights.spec.model_dump(by_alias=True), f"the network in {weights.path}", trusted))


def _head_of(spec: NetworkSpec, out_channels: int | None) -> tuple[str, ...]:
    return head_tensors(spec if out_channels is None else spec.model_copy(update={"out_channels": out_channels}))


def _fitted_stem(
    first: Iterable[str], given: Mapping[str, Tensor], targets: Mapping[str, Tensor], weights: Weights, stem: Stem
) -> dict[str, Tensor]:
    """`given` with the stem for the network's own number of input channels, as `stem` says.

    A stem that stays random makes the rest worthless, though it is a small share: so that has to be asked for.
    """
    fitted = dict(given)
    for name in first:
        if name not in given or name not in targets or given[name].dim() < 2:
            continue
        theirs, ours = given[name].shape, targets[name].shape
        if theirs[1] == ours[1] or (theirs[0], *theirs[2:]) != (ours[0], *ours[2:]):
            continue
        if stem == "same":
            raise TransferError(
                f"{weights.path} holds a network for other input channels: '{name}' has shape {tuple(theirs)}, that of the network with "
                f"in_channels {ours[1]} has {tuple(ours)}. Give the network the number of input channels it was pretrained with, or say "
                "what becomes of these weights: stem='repeat', 'average' or 'new'."
            )
        if stem == "new":
            del fitted[name]
            continue
        repeated = given[name][:, torch.arange(ours[1]) % theirs[1]]
        averaged = given[name].mean(dim=1, keepdim=True).expand(ours)
        fitted[name] = (repeated if stem == "repeat" else averaged) * (theirs[1] / ours[1])
    return fitted


def _report(network: str, weights: Weights, matched: Matched, targets: Mapping[str, Tensor], heads: set[str], names: str) -> LoadReport:
    return LoadReport(
        checkpoint=str(weights.path),
        network=network,
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
    spec: NetworkSpec | None,
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
        f"{share} of {report.network} (its head aside) could be loaded from {weights.path}; {asked} was asked for. {why}{lacking}"
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


def _difference(spec: NetworkSpec | None, weights: Weights, given: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> str:
    dims = [(given[name].dim() - 2, targets[name].dim() - 2) for name in targets if name in given and given[name].dim() > 3]
    unequal = next(((theirs, ours) for theirs, ours in dims if theirs != ours), None)
    if unequal is not None:
        return f"The checkpoint is in {unequal[0]}D, the network in {unequal[1]}D: give spatial_dims: {unequal[0]}. "
    if weights.spec is None or spec is None:
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
