"""Order of slices and frames, and what comes next, for medssl."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_ordering.frame_order import FrameOrder
from medssl_ordering.next_slice import NextSlice
from medssl_ordering.slice_order import OrderVerification, SliceOrder

__all__ = ["FrameOrder", "NextSlice", "OrderVerification", "SliceOrder", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [FrameOrder, NextSlice, OrderVerification, SliceOrder]
