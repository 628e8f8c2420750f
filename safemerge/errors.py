"""The error family: what can go wrong, reported in one message.

Every message follows ``<where>: <rule broken>; got <value>. <what to do>``. Errors cross
process borders (Ray), so each is picklable: positional arguments with defaults only.
"""


class SafemergeError(Exception):
    """Root of every error that safemerge raises on purpose.

    Args:
        message: One complete message, place first.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class UserError(SafemergeError, ValueError):
    """The user's input or environment is wrong: exit code 2, no traceback."""


class ConfigError(UserError):
    """A declared file breaks its schema or its rules."""


class DataError(UserError):
    """A data source is missing, malformed, empty, or overlaps another split."""


class CheckpointError(UserError):
    """A checkpoint cannot be read: missing, truncated, corrupt or pickled."""


class CheckpointMismatchError(UserError):
    """Checkpoints of one merge disagree: names, shapes, dtypes, vocabulary, tying."""


class CheckpointChangedError(CheckpointError, CheckpointMismatchError):
    """A checkpoint's files are no longer those that were opened, or that a digest is of."""


class PreflightError(UserError):
    """The machine lacks something: a package, disk space, a free port, a cluster."""


class MergeError(SafemergeError, ValueError):
    """A merge cannot be computed: a parameter out of range, a non-finite tensor."""


class EngineError(SafemergeError, RuntimeError):
    """An inference engine failed, or answered for another candidate."""


class NoReplicaError(EngineError):
    """No replica takes requests, and none has come up for long: what waits was never tried."""


class ScoringError(SafemergeError, RuntimeError):
    """Scores cannot be turned into a metric, e.g. too many responses are unscored."""


class StudyError(SafemergeError, RuntimeError):
    """A run's folder or storage contradicts what is asked of it."""


class ChangedRunError(StudyError, UserError):
    """A run's files, or what the run was made with, are no longer what they were."""


class RunFolderError(StudyError, UserError):
    """A folder holds no run, or one that this version cannot read."""


class ObjectStoreError(SafemergeError, RuntimeError):
    """An object store cannot be asked: no such bucket, no right, no network."""


class TrainingError(SafemergeError, RuntimeError):
    """Training failed: a loss that is not finite, a worker that died."""
