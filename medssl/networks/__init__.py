"""Networks: a specification that can be built again, head and stem found by difference, where an encoder ends, which crops fit.

The names below are loaded when first used: the encoder table (`medssl.networks.encoders`) is an entry point, and reading entry
points must cost neither torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medssl.networks.depth import parts_by_depth
    from medssl.networks.difference import (
        dense_head,
        head_module,
        head_modules,
        head_tensors,
        stem_modules,
        stem_tensors,
        swap_head,
        unique_tensors,
    )
    from medssl.networks.encoding import Encoder, decoder_parameters, encoder, encoder_parameters
    from medssl.networks.instances import first_convolution
    from medssl.networks.layout import encoder_end, encoder_layout
    from medssl.networks.probe import dense_output, fixed_size, main_output
    from medssl.networks.sizes import check_crop, crop_problem, network_info
    from medssl.networks.spec import NetworkSpec, as_spec
    from medssl.networks.stored import described_spec, stored_spec
    from medssl.networks.transferable import Matched, first_network, load_matching
    from medssl.networks.trunk import Trunk

_WHERE = {
    "NetworkSpec": "spec",
    "as_spec": "spec",
    "first_convolution": "instances",
    "dense_head": "difference",
    "head_module": "difference",
    "head_modules": "difference",
    "head_tensors": "difference",
    "stem_modules": "difference",
    "stem_tensors": "difference",
    "swap_head": "difference",
    "unique_tensors": "difference",
    "dense_output": "probe",
    "fixed_size": "probe",
    "main_output": "probe",
    "Encoder": "encoding",
    "decoder_parameters": "encoding",
    "encoder": "encoding",
    "encoder_parameters": "encoding",
    "parts_by_depth": "depth",
    "Trunk": "trunk",
    "encoder_end": "layout",
    "encoder_layout": "layout",
    "check_crop": "sizes",
    "crop_problem": "sizes",
    "network_info": "sizes",
    "described_spec": "stored",
    "stored_spec": "stored",
    "Matched": "transferable",
    "first_network": "transferable",
    "load_matching": "transferable",
}

__all__ = [
    "Encoder",
    "Matched",
    "NetworkSpec",
    "Trunk",
    "as_spec",
    "check_crop",
    "crop_problem",
    "decoder_parameters",
    "dense_head",
    "dense_output",
    "described_spec",
    "encoder",
    "encoder_end",
    "encoder_layout",
    "encoder_parameters",
    "first_convolution",
    "first_network",
    "fixed_size",
    "head_module",
    "head_modules",
    "head_tensors",
    "load_matching",
    "main_output",
    "network_info",
    "parts_by_depth",
    "stem_modules",
    "stem_tensors",
    "stored_spec",
    "swap_head",
    "unique_tensors",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"medssl.networks.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'medssl.networks' has no attribute '{name}'")
