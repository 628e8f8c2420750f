"""Data-aware optimisation of merges: coefficients found by safety and expert data."""
