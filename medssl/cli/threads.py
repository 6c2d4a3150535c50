"""How the threads of torch wait: asleep."""

from __future__ import annotations

import os

POLICY = "OMP_WAIT_POLICY"


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the user set `OMP_WAIT_POLICY`; call before torch is loaded.

    By default they spin. Beside other jobs a thread then burns its time slices waiting for one that has no CPU, and training
    takes several times its CPU time; alone on a machine sleeping costs nothing that can be measured. `GOMP_SPINCOUNT`, where the
    user set it, is stronger than this. The OpenMP library reads both once, when torch loads it.
    """
    os.environ.setdefault(POLICY, "passive")
