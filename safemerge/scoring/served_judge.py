"""From a declared judge to one in a process of its own, where a guard may have a vLLM engine."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from safemerge.config.judge import GuardJudge, JudgeServiceSpec, JudgeSpec
from safemerge.errors import EngineError, PreflightError
from safemerge.scoring.guard import GenerativeGuard
from safemerge.scoring.judge import Judge
from safemerge.scoring.local_judge import local_judge


def served_judge(spec: JudgeSpec, service: JudgeServiceSpec) -> Judge:
    """Return a judge that is ready: a guard on vLLM where it can be, all others on transformers.

    Args:
        spec: The declared judge, its path resolved.
        service: Memory of a vLLM engine.

    Raises:
        CheckpointError, ConfigError: See `local_judge`.
        PreflightError, EngineError: If the guard asks for vLLM by name, and it is not installed
            or does not start. With ``engine: auto`` transformers takes its place, with a warning.
    """
    if not isinstance(spec, GuardJudge) or not _wants_vllm(spec):
        return local_judge(spec)
    from safemerge.scoring.guard_vllm import VllmGuardModel

    try:
        return GenerativeGuard(spec, VllmGuardModel(spec, service))
    except (EngineError, PreflightError) as error:
        if spec.engine == "vllm":
            raise
        logging.getLogger(__name__).warning("%s So transformers runs the judge.", error)
        return local_judge(spec)


def _wants_vllm(spec: GuardJudge) -> bool:
    if spec.engine != "auto":
        return spec.engine == "vllm"
    import torch

    # NOTE: vLLM takes the device that it was built for.
    fits = (spec.device == "cuda") == torch.cuda.is_available()
    return fits and find_spec("vllm") is not None
