"""Public contract suites for plugin authors, and tiny fixtures.

    from medssl.testing import PretextTaskContract

    class TestMine(PretextTaskContract):
        task = Mine

The contracts need pytest: `pip install 'medssl[testing]'`. `medssl.testing.dicom` writes made-up DICOM series and needs neither
pytest nor torch, so names here are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medssl.errors import MissingInput

if TYPE_CHECKING:
    from medssl.testing.fixtures import make_crops, make_info, make_views, select
    from medssl.testing.losses import ConsistencyLossContract
    from medssl.testing.tasks import PretextTaskContract

_WHERE = {
    "ConsistencyLossContract": "losses",
    "PretextTaskContract": "tasks",
    "make_crops": "fixtures",
    "make_info": "fixtures",
    "make_views": "fixtures",
    "select": "fixtures",
}

__all__ = ["ConsistencyLossContract", "PretextTaskContract", "make_crops", "make_info", "make_views", "select"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        try:
            return getattr(import_module(f"medssl.testing.{_WHERE[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "pytest":
                raise
            raise MissingInput(f"medssl.testing.{name} needs pytest. Install it with: pip install 'medssl[testing]'") from None
    raise AttributeError(f"module 'medssl.testing' has no attribute '{name}'")
