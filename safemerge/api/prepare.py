"""Checking a study, and making its checkpoints exist: what several functions begin with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safemerge.api.progress import Progress
from safemerge.config.extra import VLLM
from safemerge.config.judge import GuardJudge, JudgeSpec, ModelJudge
from safemerge.config.models import study_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec, StudySpec
from safemerge.errors import CheckpointError, PreflightError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from safemerge.data.suite import Suites


class Checked(NamedTuple):
    """What `preflight` found."""

    notices: tuple[str, ...]
    """What must be known of the models that can be looked at; see `check_models`."""
    suites: Suites
    """The study's suites, loaded."""


def preflight(spec: StudySpec, progress: Progress) -> Checked:
    """Refuse what can be seen to fail before a cluster starts.

    Args:
        spec: The study; checkpoints still to be trained are not looked at.
        progress: Where it is said which rows of the suites are left out.

    Raises:
        PreflightError: If the engine is not installed, or could not load the base.
        CheckpointError: If a checkpoint or a judge cannot be opened, or the base has no chat
            template.
        CheckpointMismatchError: If experts cannot be merged with the base.
        DataError: If a suite cannot be read, or a prompt does not fit the context.
        ConfigError: If a task needs what no engine gives.
    """
    check_engine(spec.evaluator)
    check_judges([judge for suite in spec.suites for judge in suite.judges])

    from safemerge.data.suite import load_suites
    from safemerge.distributed.search import check_models

    notices = check_models(spec)
    check_loadable(spec)
    suites = load_suites(spec)
    if _tokenizer_known(spec):
        check_prompts(spec, suites, progress)
    return Checked(notices, suites)


def check_loadable(spec: StudySpec) -> None:
    """Refuse a base that an engine could not load as it stands.

    vLLM has models of its own, and says itself what it does not know.

    Raises:
        PreflightError: If the transformers engine is asked for a base that transformers cannot
            read, or dense weights lie beside a ``quantization_config``.
    """
    from safemerge.weights.checkpoint import CONFIG_FILE, read_json
    from safemerge.weights.quantized import declared_quantization
    from safemerge.weights.settings import unread_reason

    if spec.base.path is None:
        return
    file = Path(spec.base.path) / CONFIG_FILE
    config = read_json(file)
    reason = unread_reason(config)
    if reason is not None and spec.evaluator.engine == "transformers":
        raise PreflightError(
            f"evaluator.engine: transformers must know the base; got {spec.base.path}: {reason}. "
            f"Custom code is never run. Use evaluator.engine: vllm if that knows the model."
        )
    quantization = declared_quantization(config)
    if quantization is not None:
        raise PreflightError(
            f"{file}: an engine would quantise the base's dense weights once more; got "
            f"quantization_config ({quantization}). Remove it from the file."
        )


def _tokenizer_known(spec: StudySpec) -> bool:
    """Whether the models that a study's tokenizer and template come from are folders already."""
    from safemerge.merge.candidate_tokenizer import tokenizer_models

    models = study_models(spec)
    named = tokenizer_models(models)
    return all(ref.path is not None for ref in models.checkpoints if ref.name in named)


def check_judges(judges: Sequence[JudgeSpec]) -> None:
    """Refuse judges whose folder is missing, or whose chat template cannot ask a guard.

    Raises:
        CheckpointError: See `safemerge.scoring.guard_model.guard_template`.
    """
    for judge in judges:
        if not isinstance(judge, ModelJudge) or judge.path is None:
            continue
        if not Path(judge.path).is_dir():
            raise CheckpointError(
                f"judge '{judge.name}': path must be a folder with weights and tokenizer; got "
                f"{judge.path}. Check judge.path."
            )
        if isinstance(judge, GuardJudge):
            from safemerge.scoring.guard_model import guard_template

            guard_template(judge)


def check_prompts(spec: StudySpec, suites: Suites, progress: Progress) -> None:
    """Tokenise both splits and the rung once, as replicas will, and let no judge be loaded.

    Args:
        spec: A study whose tokenizer comes from models that are folders.
        suites: Its suites.
        progress: Where it is said which rows are left out.

    Raises:
        CheckpointError, DataError, ConfigError: See `preflight`.
    """
    from safemerge.data.suite import dropped_lines
    from safemerge.engines.chat import ChatFormat
    from safemerge.evaluation import prepare_split
    from safemerge.merge.candidate_tokenizer import candidate_tokenizer
    from safemerge.scoring.judge import RefusalProxyJudge

    chat = ChatFormat(candidate_tokenizer(study_models(spec)), spec.chat)
    for line in dropped_lines(spec.suites, suites):
        progress.say(line)
    for loaded in suites.values():
        prepare_split(
            loaded,
            chat,
            max_model_len=spec.evaluator.max_model_len,
            make_judge=lambda _: RefusalProxyJudge(),
        )
    if spec.rung is not None:
        from safemerge.distributed.rung import RungPairs

        pairs = RungPairs(
            spec.rung, chat, max_model_len=spec.evaluator.max_model_len, seed=spec.seed
        )
        cut = f", of which {pairs.num_cut} answers are cut" if pairs.num_cut else ""
        progress.say(f"low rung first: losses on {pairs.num_pairs} pairs{cut}")


def check_engine(spec: EvaluatorSpec) -> None:
    """Refuse a file whose engine is not installed, without the seconds of importing it.

    Where ``RAY_ADDRESS`` names a cluster nothing is said: its machines have their own packages.

    Raises:
        PreflightError: If it is not installed.
    """
    if spec.engine != "vllm" or os.environ.get("RAY_ADDRESS"):
        return
    if find_spec("vllm") is None:
        raise PreflightError(
            f"evaluator.engine: vllm must be installed; got no such package. {VLLM}, or set "
            "evaluator.engine: transformers."
        )


def resolve_study(
    spec: StudySpec, suites: Suites, progress: Progress, *, stack: ExitStack | None = None
) -> StudySpec:
    """Return the study with every checkpoint on disk and fingerprinted.

    Trains what is declared and not yet cached, then checks that all models agree.

    Args:
        spec: The study as declared.
        suites: Its suites.
        progress: Where progress goes.
        stack: Keeps a cluster that had to be started for training; else that one ends here.

    Raises:
        UserError: If the engine, a checkpoint or a training file is missing or wrong.
        TrainingError: If a stage failed.
    """
    from safemerge.distributed.ingredient import Ingredients

    ingredients = Ingredients(say=progress.say, on_step=progress.training_step, stack=stack)
    return resolve_with(
        spec,
        suites,
        progress,
        lambda: spec.with_checkpoints(ingredients.resolve(spec.all_checkpoints)),
    )


def resolve_with(
    spec: StudySpec, suites: Suites, progress: Progress, resolve: Callable[[], StudySpec]
) -> StudySpec:
    """Resolve a study in some way, and check before and after what can be checked.

    Args:
        spec: The study as declared.
        suites: Its suites.
        progress: Where progress goes.
        resolve: Returns it with checkpoints on disk and fingerprinted.

    Raises:
        UserError: If the engine, a checkpoint or a training file is missing or wrong.
        TrainingError: If a stage failed.
    """
    from safemerge.distributed.search import check_models
    from safemerge.distributed.statistics import check_quantities

    check_engine(spec.evaluator)
    check_quantities(MergeRecipe.model_validate(spec.template(space)) for space in spec.spaces)
    resolved = resolve()
    for notice in check_models(resolved):
        progress.say(f"note: {notice}")
    if not _tokenizer_known(spec):
        check_prompts(resolved, suites, progress)
    return resolved
