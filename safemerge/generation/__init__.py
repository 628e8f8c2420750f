"""Synthetic data: questions, answers, the refusals among them, and what was dropped."""
