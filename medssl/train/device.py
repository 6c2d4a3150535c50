"""Which device a run uses, in which precision, and on how many CPUs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import torch

from medssl.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def choose_device(name: str = "auto") -> torch.device:
    """The device of `train.device`; `auto` is the first GPU, else the CPU. Raises `ConfigError` where it is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 0):
        raise ConfigError(f"train.device: '{name}' is not on this machine ({present['cuda']} CUDA devices). Use device: auto.")
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether the device calculates in bf16 itself; elsewhere autocast is far slower than fp32 (20 times on common CPUs)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = {flag for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return any(flag in flags for flag in _CPU_FLAGS)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast, or None for plain fp32. Asking for bf16 where it is not native is a `ConfigError`.

    On a CPU `auto` is fp32 whether or not it has bf16 units: they gain little there, and a run should not end in other numbers
    because it was started on another processor.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: '{precision}' is none of {', '.join(get_args(Precision))}.")
    if precision == "fp32" or (precision == "auto" and device.type == "cpu"):
        return None
    native = native_bf16(device)
    if precision == "bf16" and not native:
        raise ConfigError(
            f"precision: bf16 was asked for, but this {device.type.upper()} has no units for it and would be many times slower. "
            "Use precision: auto, which takes bf16 only on GPUs that have it."
        )
    return torch.bfloat16 if native else None


def available_cpus() -> int:
    """CPUs that this process may use: those of its affinity mask (`taskset`, a SLURM job), else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fit_threads() -> None:
    """Lower torch's threads to the CPUs that this process may use; a number that the user set (`OMP_NUM_THREADS`) stays.

    torch looks at the affinity once, when it is loaded; a process may have been bound to fewer CPUs since. Threads that share
    a CPU wait for each other in every operation.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())
