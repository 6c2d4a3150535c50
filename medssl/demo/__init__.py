"""The demonstration: a small made-up archive, and the whole way from its DICOM files to a fine-tuned network."""

from medssl.demo.story import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
