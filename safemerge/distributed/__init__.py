"""The only Ray code: Train wrappers, the Serve evaluator, the Tune search, cluster preflight."""
