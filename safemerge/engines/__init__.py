"""Engines hold one candidate's weights and answer prompts."""
