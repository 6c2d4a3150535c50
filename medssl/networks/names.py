"""Which tensor of a file is which of a network, where a wrapper's prefix was put before all names or is missing from them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medssl.errors import TransferError

WRAPPERS = frozenset({"module", "network", "model", "net", "student", "backbone", "encoder"})
"""What data parallelism and training frameworks put before a network's own names: of two prefixes that fit alike, these are meant."""
FAR_MORE = 2
"""How many times as many tensors one renaming must fit as any other."""


@dataclass(frozen=True)
class Renaming:
    """One prefix taken off and another put in front of every name."""

    off: str = ""
    on: str = ""

    def __call__(self, name: str) -> str | None:
        """The new name; None for names without the prefix."""
        return self.on + name.removeprefix(self.off) if name.startswith(self.off) else None

    def __str__(self) -> str:
        parts = [f"'{self.off}' taken off"] if self.off else []
        parts += [f"'{self.on}' put in front"] if self.on else []
        return " and ".join(parts) or "as they are"

    @property
    def is_usual(self) -> bool:
        """Whether it takes off what is known to be put on, and nothing more."""
        return not self.on and set(self.off.rstrip(".").split(".")) <= WRAPPERS | {""}


@dataclass(frozen=True)
class Names:
    """The network's names of a checkpoint's tensors."""

    of: dict[str, str]
    how: str


def network_names(given: Mapping[str, Tensor], targets: Mapping[str, Tensor], path: Path, rename: Mapping[str, str]) -> Names:
    """Each given tensor under the network's own name, parts replaced as `rename` says; what the prefix is not on keeps its name."""
    plain: dict[str, str] = {}
    for name in given:
        new = name.replace("_orig_mod.", "")
        for part, other in rename.items():
            new = re.sub(rf"(?<![^.]){re.escape(part)}(?![^.])", lambda _, other=other: other, new)  # type: ignore[misc]
        plain[name] = new
    if len(set(plain.values())) < len(plain):
        twice = next(new for new in plain.values() if list(plain.values()).count(new) > 1)
        both = [name for name, new in plain.items() if new == twice]
        raise TransferError(f"{path} holds two tensors for '{twice}': '{both[0]}' and '{both[1]}'. Rename them to two names.")
    renaming = best_renaming({new: given[name] for name, new in plain.items()}, targets, path)
    changed = {name: renaming(new) for name, new in plain.items()}
    taken = {new for new in changed.values() if new is not None}
    kept = {name: plain[name] for name, new in changed.items() if new is None and plain[name] not in taken}
    return Names({name: new for name, new in changed.items() if new is not None} | kept, str(renaming))


def best_renaming(given: Mapping[str, Tensor], targets: Mapping[str, Tensor], path: Path) -> Renaming:
    """The renaming under which the most names and shapes agree: of half the file or half the network at least, else names stay.

    Raises `TransferError` where two networks in the file fit alike: which one is meant, nobody can tell.
    """
    endings = _by_ending(targets)
    votes = Counter[Renaming]()
    for name, tensor in given.items():
        votes.update(dict(_fitting(name, tensor, endings)))
    if not votes:
        return Renaming()
    ranked = sorted(votes, key=lambda one: (votes[one], one == Renaming(), one.is_usual, -len(one.off) - len(one.on)), reverse=True)
    best = ranked[0]
    if best == Renaming() or votes[best] < min(len(given), len(targets)):
        return Renaming()
    rivals = [one for one in ranked[1:] if FAR_MORE * votes[one] > votes[best] and one != Renaming() and one.is_usual >= best.is_usual]
    for rival in rivals:
        pair = _meeting(best, rival, given, targets)
        if pair is not None:
            raise TransferError(
                f"{path} holds two tensors for '{pair[0]}': '{pair[1]}' and '{pair[2]}'. Save the one network you mean by itself."
            )
    return best


def _by_ending(targets: Mapping[str, Tensor]) -> dict[str, list[tuple[str, Tensor]]]:
    """Last parts of a name -> what comes before them in each of the network's names that ends so, and its tensor."""
    found: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in targets.items():
        for start, ending in _endings(name):
            found[ending].append((start, tensor))
    return found


def _endings(name: str) -> Iterator[tuple[str, str]]:
    parts = name.split(".")
    for place in range(len(parts)):
        before = ".".join(parts[:place])
        yield before + "." if before else "", ".".join(parts[place:])


def _fitting(name: str, tensor: Tensor, endings: Mapping[str, list[tuple[str, Tensor]]]) -> Iterator[tuple[Renaming, int]]:
    """The renamings that make one of the network's names of this one, each in its shortest form, and what that counts.

    A tensor of another shape counts half where only what is known to be put on comes off: then the network is another, not the name.
    """
    for off, ending in _endings(name):
        for on, target in endings.get(ending, ()):
            renaming = Renaming(off, on)
            if on and not Renaming(off).is_usual:
                continue  # another name for a part is no prefix: that is for the user to say
            if tensor.shape == target.shape:
                yield renaming, 2
            elif renaming.is_usual:
                yield renaming, 1


def _meeting(one: Renaming, other: Renaming, given: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[str, str, str] | None:
    """A tensor of the network that both renamings fill, and from which two."""
    filled: dict[str, str] = {}
    for name in given:
        for new in (one(name), other(name)):
            if new is not None and new in targets and filled.setdefault(new, name) != name:
                return new, filled[new], name
    return None
