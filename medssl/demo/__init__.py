"""The demonstration: a small made-up archive, and the whole way from its DICOM files to a fine-tuned network."""

from medssl.demo.anatomy import LABELS, Scan, make_scan
from medssl.demo.archive import write_archive, write_labels, write_pairs
from medssl.demo.story import DemoResult, run_demo

__all__ = ["LABELS", "DemoResult", "Scan", "make_scan", "run_demo", "write_archive", "write_labels", "write_pairs"]
