"""Prompts and targets: packaged data sets, generators, local files, the hub; splits kept apart."""
