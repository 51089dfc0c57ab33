"""Approximate matrix factorization for second-order deep learning: methods, experiments, verdicts."""

__version__ = "0.1.0"
