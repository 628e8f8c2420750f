"""Robustness: how far hardening outlasts harmful fine-tuning, over a grid of attacks."""
