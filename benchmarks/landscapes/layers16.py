"""`layers8` with weights at eight depths."""

from landscapes.layers8 import EXPERTS, OBJECTIVES, PROMPTS, truth

__all__ = ["OBJECTIVES", "PROMPTS", "SPACE", "truth"]

SPACE = {f"{name}.{depth}": {"low": 0.0, "high": 1.0} for name in EXPERTS for depth in range(8)}
