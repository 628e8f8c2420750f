"""From a declared judge to one that runs in this process."""

from __future__ import annotations

import functools

from pydantic import TypeAdapter

from safemerge.config.judge import AddedJudge, ClassifierJudge, GuardJudge, JudgeSpec, RefusalProxy
from safemerge.scoring.judge import Judge, RefusalProxyJudge, added_judge

_SPEC: TypeAdapter[JudgeSpec] = TypeAdapter(JudgeSpec)


def local_judge(spec: JudgeSpec) -> Judge:
    """Return a judge, its model loaded into this process.

    One model serves every suite and split of a process that declares it alike.

    Args:
        spec: The declared judge, its path resolved.

    Returns:
        A judge that is ready.

    Raises:
        CheckpointError: If the judge's weights or tokenizer cannot be loaded.
        ConfigError: If the model does not have the declared labels.
    """
    return _loaded(_SPEC.dump_json(spec).decode())


@functools.lru_cache(maxsize=8)
def _loaded(document: str) -> Judge:
    spec = _SPEC.validate_json(document)
    match spec:
        case RefusalProxy():
            return RefusalProxyJudge()
        case ClassifierJudge():
            from safemerge.scoring.classifier import SequenceClassifierJudge

            return SequenceClassifierJudge(spec)
        case AddedJudge():
            return added_judge(spec)
        case GuardJudge():
            from safemerge.scoring.guard import GenerativeGuard
            from safemerge.scoring.guard_model import TransformersGuardModel

            return GenerativeGuard(spec, TransformersGuardModel(spec))
