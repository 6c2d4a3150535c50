"""A new plugin package: one module with a small whole task to change, its pyproject, its test and its README."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template

from medssl.errors import UsageError
from medssl.faults import faults_as
from medssl.plugins import KNOWN_PACKAGES, Plugins

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FILES = {
    "module.py.txt": "{module}.py",
    "pyproject.toml.txt": "pyproject.toml",
    "test.py.txt": "tests/test_{plugin}.py",
    "README.md.txt": "README.md",
}


def write_plugin(name: str, folder: str | Path = ".") -> Path:
    """Write the package `medssl-NAME` for a pretext task `name` into `folder` and return its folder.

    It can be installed and keeps the contract as it is. Raises `UsageError` for a name that cannot be, is taken, or whose folder is there.
    """
    if not _NAME.fullmatch(name) or len(name) > 50:
        raise UsageError(f"'{name}' cannot name a pretext task. Take lower-case letters and digits, words joined by hyphens: my-denoising.")
    taken = {
        **dict.fromkeys(KNOWN_PACKAGES, "medssl"),
        **{known: str(provider) for known, (_, _, provider) in Plugins.load().offered().items()},
    }
    if name in taken:
        raise UsageError(f"'{name}' is a task or loss of {taken[name]} already. Take another name.")
    plugin = name.replace("-", "_")
    words = {
        "name": name,
        "package": f"medssl-{name}",
        "plugin": plugin,
        "module": f"medssl_{plugin}",
        "cls": "".join(word.capitalize() for word in name.split("-")),
    }
    target = Path(folder) / words["package"]
    with faults_as(UsageError, f"the package cannot be written to {target}"):
        if target.exists():
            raise UsageError(f"{target} is there already. Take another name or folder.")
        for template, place in _FILES.items():
            text = files("medssl.testing").joinpath("new_plugin", template).read_text(encoding="utf-8")
            file = target / place.format(**words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), encoding="utf-8")
    return target
