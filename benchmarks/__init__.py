"""Benchmarks: this project, its peers and the limits side by side. ``python -m benchmarks --help``."""
