"""The only Ray code: Train wrappers, the Serve evaluator, the Tune search, cluster preflight.

Ray reads its environment when it is imported, so the settings stand here, before any of it.
"""

import os

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Ctrl-C is an interrupt like any other, not Tune's wish to stop and return as if all were well.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# Else a late call of one of Ray's own threads starts a new cluster after ours has ended.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
# Ray Train looks at its workers every 2 s by default, and takes a checkpoint or an end only then.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
# Ray starts workers at niceness 15: on a busy laptop they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
