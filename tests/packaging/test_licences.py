"""Everything that `pip install medssl` installs has a licence of this list: a package under Apache-2.0 must not ask for a GPL library."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT"),
    *("MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
}
"""MPL-2.0 covers the files of its package alone, as certifi's list of certificates."""
MEANT = {
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""What classifiers and free text say, as SPDX names it."""
NVIDIA = ("nvidia-", "cuda-")
"""What torch's CUDA builds need beside the driver: NVIDIA's own licence. The CPU builds come without."""


def installed_with(name: str) -> dict[str, metadata.Distribution]:
    """A package and all that it requires here, without extras of its own."""
    found: dict[str, metadata.Distribution] = {}
    todo: list[tuple[str, frozenset[str]]] = [(name, frozenset())]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        found[name] = metadata.distribution(name)
        for line in found[name].requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                pair = (canonicalize_name(wanted.name), frozenset(wanted.extras))
                todo += [pair] * (pair not in seen)
                seen.add(pair)
    return found


def licence(distribution: metadata.Distribution) -> str:
    """As an SPDX expression: the one that is stated, else what the classifiers say, else the free text."""
    stated = distribution.metadata.get("License-Expression")
    if stated:
        return stated
    text = (distribution.metadata.get("License") or "").strip()
    classified = [line.rpartition(" :: ")[2] for line in distribution.metadata.get_all("Classifier") or () if line.startswith("License ::")]
    # The free text of one line is more precise where the classifier only says BSD.
    if not classified or (text in ALLOWED and classified == ["BSD License"]):
        return MEANT.get(text, text or "none stated")
    return " AND ".join(MEANT.get(name, name) for name in classified)


def is_allowed(expression: str) -> bool:
    parts = [part.strip("() ") for part in re.split(r"\bAND\b", expression)]
    return all(any(choice.strip("() ") in ALLOWED for choice in re.split(r"\bOR\b", part)) for part in parts)


PROJECTS = ["medssl", *(project.name for project in sorted(ROOT.glob("plugins/medssl-*")))]


@pytest.mark.parametrize("project", PROJECTS)
def test_every_package_that_comes_with_medssl_and_its_plugins_has_a_licence_of_the_list(project: str) -> None:
    found = {name: licence(distribution) for name, distribution in installed_with(project).items() if not name.startswith(NVIDIA)}
    assert {"torch", "imagecodecs", "certifi"} <= set(found)
    assert project != "medssl-dicomweb" or "dicomweb-client" in found
    assert {name: text for name, text in found.items() if not is_allowed(text)} == {}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("License: GPL V3.0\nClassifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", False),
        ("License: GPL V3.0", False),
        ("License-Expression: GPL-3.0-or-later", False),
        ("License-Expression: MIT AND LGPL-2.1-only", False),
        ("Classifier: License :: OSI Approved :: MIT License\nClassifier: License :: Other/Proprietary License", False),
        ("", False),
        ("License-Expression: MIT OR GPL-2.0-only", True),
        ("License-Expression: (Apache-2.0 OR BSD-2-Clause) AND Zlib", True),
        ("License: BSD-3-Clause\nClassifier: License :: OSI Approved :: BSD License", True),
        ("License: Apache License 2.0", True),
    ],
)
def test_how_a_licence_is_stated_does_not_matter(lines: str, expected: bool, tmp_path: Path) -> None:
    folder = tmp_path / "some-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("\n".join(filter(None, ("Metadata-Version: 2.4\nName: some\nVersion: 1.0", lines))) + "\n\n")
    assert is_allowed(licence(metadata.PathDistribution(folder))) == expected


def test_the_docs_name_every_dependency_and_its_licence() -> None:
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([\w.-]+(?: and others)?) \|", (ROOT / "docs" / "dependencies.md").read_text(), re.M))
    required = [Requirement(line) for line in metadata.requires("medssl") or ()]
    direct = {wanted.name for wanted in required if wanted.marker is None}
    assert set(rows) - {"package"} == direct
    wrong = {name: licence(metadata.distribution(name)) for name in direct}
    assert {name: (rows[name], text) for name, text in wrong.items() if not text.startswith(rows[name].removesuffix(" and others"))} == {}
