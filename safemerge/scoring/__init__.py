"""Responses to scores, scores to metrics with intervals."""
