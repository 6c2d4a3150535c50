"""Measurements of medssl beside a peer. Each module is a program: `make bench-training` and the like; pytest collects none."""
