"""`medssl doctor`: versions, devices, disk, decoders and plugins, for a person or a bug report."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from medssl.cli.output import print_json, print_table

PACKAGES = (
    "medssl",
    "torch",
    "monai",
    "pytorch-ignite",
    "numpy",
    "pydicom",
    "nibabel",
    "blosc2",
    "duckdb",
    "pyarrow",
    "pluggy",
    "pydantic",
)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Print versions, devices, disk, decoders and plugins."""
    report = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "devices": _devices(),
        "disk": _disk(),
        "decoders": _decoders(),
        "plugins": _plugins(),
    }
    if as_json:
        print_json(report)
        return
    for title, rows in report.items():
        print_table(title, ("what", "is"), list(rows.items()))


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch

    from medssl.train.device import available_cpus

    found = {"CPU": f"{available_cpus()} cores for this process"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found[f"GPU {number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        found["GPU"] = "none found; training runs on the CPU"
    return found


def _disk() -> dict[str, str]:
    usage = shutil.disk_usage(Path.cwd())
    return {"free in this folder": f"{usage.free / 2**30:.0f} of {usage.total / 2**30:.0f} GiB"}


def _decoders() -> dict[str, str]:
    from pydicom import uid

    from medssl.archive.decoders import can_decode

    wanted = ("RLELossless", "JPEGBaseline8Bit", "JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless", "HTJ2KLossless")
    missing = "cannot be read: this build of imagecodecs lacks it. Run: pip install --upgrade imagecodecs"
    return {name: "can be read" if can_decode(getattr(uid, name)) else missing for name in wanted}


def _plugins() -> dict[str, Any]:
    from medssl.plugins import Plugins

    loaded = Plugins.load()
    good = {provider.plugin: str(provider) for provider in loaded.providers()}
    return {**good, **{broken.provider.plugin: f"{broken.provider}: BROKEN, {broken.error}" for broken in loaded.broken}}
