"""From declared checkpoints to checkpoints on disk: unpacked, trained once, fingerprinted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from safemerge.config.alignment import AlignSpec
from safemerge.config.checkpoint import CheckpointRef, Setting
from safemerge.config.document import load_document, parse_document
from safemerge.config.dotted_path import set_path
from safemerge.config.training import FinetuneSpec
from safemerge.config.variant import settings_text
from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.statistics import (
    gathered_files,
    load_statistics_spec,
    resolve_statistics,
)
from safemerge.engines.chat import ChatFormat
from safemerge.errors import CheckpointError, ConfigError, TrainingError
from safemerge.training.batch import load_mixture
from safemerge.training.ingredient import (
    MARKER,
    MEASURED,
    ingredient_digest,
    ingredient_folder,
    is_finished,
)
from safemerge.training.lora import bare_model, check_targets
from safemerge.training.measured import measure_lines
from safemerge.training.packaged_model import packaged_model
from safemerge.weights.checkpoint import read_json
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.hub import hub_snapshot


class Stage(NamedTuple):
    """A training file, with some of its settings replaced."""

    file: str
    kind: str
    """``align`` or ``finetune``."""
    settings: tuple[tuple[str, Setting], ...] = ()
    """Value by dotted path in the file."""

    @property
    def label(self) -> str:
        """Name for people: the file's kind, its path and what is replaced."""
        return f"{self.kind} {self.file} {settings_text(dict(self.settings))}".rstrip()

    def load(self) -> FinetuneSpec | AlignSpec:
        """Read the file, paths resolved and settings replaced."""
        return load_training_spec(self.file, self.kind, settings=dict(self.settings))


def load_training_spec(
    path: str | Path, kind: str, *, settings: Mapping[str, Setting] = MappingProxyType({})
) -> FinetuneSpec | AlignSpec:
    """Read an alignment (``align``) or fine-tuning (``finetune``) file, paths resolved.

    Args:
        path: The file.
        kind: ``align`` or ``finetune``.
        settings: Values that replace the file's, by dotted path.

    Raises:
        ConfigError: If the file or a setting is wrong.
    """
    model: type[Any] = AlignSpec if kind == "align" else FinetuneSpec
    spec: FinetuneSpec | AlignSpec = load_document(path, model)
    if settings:
        document = spec.resolved()
        text = settings_text(settings)
        for setting, value in settings.items():
            try:
                set_path(document, setting, value)
            except KeyError as error:
                raise ConfigError(f"{path}, with {text}: {error.args[0]}") from None
        spec = parse_document(document, model, where=f"{path}, with {text}")
    return spec.located(Path(path).parent)


def stage_file(ref: CheckpointRef) -> Stage | None:
    """Return what trains a checkpoint, None for one that exists."""
    settings = tuple(sorted(ref.settings.items()))
    if ref.align is not None:
        return Stage(ref.align, "align", settings)
    if ref.finetune is not None:
        return Stage(ref.finetune, "finetune", settings)
    return None


def training_plan(refs: Sequence[CheckpointRef]) -> list[list[Stage]]:
    """Order the training files that checkpoints need, dependencies first.

    Args:
        refs: Located references.

    Returns:
        Waves of stages; those of a wave do not depend on each other.

    Raises:
        ConfigError: If files refer to each other in a circle, or one is wrong.
    """
    depth: dict[Stage, int] = {}

    def visit(ref: CheckpointRef, trail: tuple[str, ...]) -> int:
        if ref.parts:
            return max(visit(part, trail) for part in ref.parts)
        stage = stage_file(ref)
        if stage is None:
            return 0
        if stage.file in trail:
            raise ConfigError(
                f"{stage.file}: training files must not need each other in a circle; got "
                f"{' -> '.join([*trail, stage.file])}."
            )
        depth[stage] = 1 + visit(stage.load().base, (*trail, stage.file))
        return depth[stage]

    for ref in refs:
        visit(ref, ())
    waves: list[list[Stage]] = [[] for _ in range(max(depth.values(), default=0))]
    for stage, level in depth.items():
        waves[level - 1].append(stage)
    return waves


def finished_folder(ref: CheckpointRef) -> Path | None:
    """Return the folder of a checkpoint that exists or was trained; None if it is to be trained.

    Raises:
        UserError: If a training file, or what it names, is wrong.
    """
    folder = future_folder(ref)
    if folder is None or (stage_file(ref) is not None and not is_finished(folder)):
        return None
    return folder


def future_folder(ref: CheckpointRef) -> Path | None:
    """Return the folder that a checkpoint is in, or will be in once it is trained.

    Returns:
        The folder; None if what it is trained from is still to be trained itself.

    Raises:
        UserError: If a training file, or what it names, is wrong.
    """
    if ref.package is not None:
        return packaged_model(ref.package)
    if ref.hub is not None:
        return hub_folder(ref)
    stage = stage_file(ref)
    if stage is None:
        return _one_folder(ref)
    spec = stage.load()
    base = finished_folder(spec.base)
    if base is None:
        return None
    mixture = load_mixture(spec, ChatFormat(base, spec.chat))
    key = ingredient_digest(spec, base_fingerprint=fingerprint(base), mixture=mixture)
    return ingredient_folder(spec.name, key)


def hub_folder(ref: CheckpointRef, *, download: bool = True) -> Path:
    """Return the snapshot of a reference to the hub, downloaded once.

    Args:
        ref: A reference to the hub; a resolved one is taken where it was found, if it is there.
        download: Whether to download what the hub's cache lacks.

    Raises:
        CheckpointError: See `hub_snapshot`.
    """
    if ref.path is not None and Path(ref.path).is_dir():
        return Path(ref.path)
    return hub_snapshot(str(ref.hub), ref.revision, where=f"model '{ref.name}'", download=download)


def _one_folder(ref: CheckpointRef) -> Path:
    if ref.on is not None or ref.stack is not None:
        key = "on" if ref.stack is None else "stack"
        raise ConfigError(
            f"checkpoint '{ref.name}': must be in one folder here; got '{key}', a model made of "
            "others. Write it with 'safemerge merge', then name its folder."
        )
    return Path(str(ref.path))


def known_folder(ref: CheckpointRef) -> str | None:
    """Return a checkpoint's folder if it is one, or is in the hub's cache; else None."""
    if ref.hub is None:
        return ref.path
    try:
        return str(hub_folder(ref, download=False))
    except CheckpointError:
        return None


def fetch_hub_models(refs: Sequence[CheckpointRef]) -> None:
    """Download what references name of the hub, so that it can be checked like any folder.

    Raises:
        CheckpointError: See `hub_snapshot`.
    """
    for ref in refs:
        if ref.hub is not None:
            hub_folder(ref)


class Ingredients:
    """Makes declared checkpoints and their statistics exist, each once.

    Args:
        say: Called with one line of progress.
        on_step: Called with a stage's name, a step's metrics and the number of steps.
        restart: Drop unfinished training; else it is continued from its last checkpoint.
        stack: Keeps a cluster that had to be started; ended with `resolve` if None.
        starts: Whether a cluster may be started at all; if not, one must be connected.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        on_step: Callable[[str, Any, int], None],
        restart: bool = False,
        stack: ExitStack | None = None,
        starts: bool = True,
    ) -> None:
        self._starts = starts
        self._say = say
        self._stack = stack
        self._on_step = on_step
        self._restart = restart
        self._folders: dict[Stage, Path] = {}
        self._snapshots: dict[tuple[str, str | None], Path] = {}

    def resolve(self, refs: Sequence[CheckpointRef]) -> dict[str, CheckpointRef]:
        """Return every reference as a fingerprinted path, by name; train what is missing.

        A cluster is joined or started only if something is to be trained or measured.

        Args:
            refs: References with unique names. The first is the base that statistics are
                gathered on: it gives the chat format, and what adapters are adapters of.

        Raises:
            UserError: If a path, package, training or statistics file is wrong.
            TrainingError: If a stage or the gathering of statistics failed.
        """
        for file in gathered_files(refs):
            load_statistics_spec(file)  # a wrong file is refused before anything is trained
        with ExitStack() as own:
            stack = self._stack or own

            resolved = self._resolve(list(_plain(refs)), partial(self._need_cluster, stack))
        return {ref.name: _joined(ref, resolved) for ref in refs}

    def prepare(self, refs: Sequence[CheckpointRef]) -> None:
        """Train what trained checkpoints are trained from, and not these themselves.

        Args:
            refs: Located references.

        Raises:
            UserError, TrainingError: See `resolve`.
        """
        stages = [stage for ref in refs if (stage := stage_file(ref)) is not None]
        with ExitStack() as own:
            stack = self._stack or own

            for wave in training_plan([stage.load().base for stage in stages]):
                self._train_wave(wave, partial(self._need_cluster, stack))

    def _need_cluster(self, stack: ExitStack) -> None:
        import ray

        if ray.is_initialized():
            return
        if not self._starts:
            raise TrainingError("training must be on a cluster; got none: the search has ended.")
        stack.enter_context(ray_cluster())

    def _resolve(
        self, refs: Sequence[CheckpointRef], need_cluster: Callable[[], None]
    ) -> dict[str, CheckpointRef]:
        plan = training_plan(refs)
        for ref in (*refs, *(stage.load().base for wave in plan for stage in wave)):
            if ref.hub is not None:
                self._folder(ref)  # what cannot be had is refused before anything is trained
        for wave in plan:
            self._train_wave(wave, need_cluster)
        resolved = {}
        for ref in refs:
            folder = self._folder(ref)
            found = fingerprint(folder)
            if ref.digest is not None and ref.digest != found:
                raise ConfigError(
                    f"checkpoint '{ref.name}': weights must have fingerprint {ref.digest}; got "
                    f"{found} in {folder}. The files changed since the recipe was written."
                )
            resolved[ref.name] = ref.resolved_to(folder, fingerprint=found)
        return resolve_statistics(
            list(resolved.values()), say=self._say, need_cluster=need_cluster
        )

    def _folder(self, ref: CheckpointRef) -> Path:
        if ref.package is not None:
            return packaged_model(ref.package, say=self._say)
        if ref.hub is not None:
            key = ref.hub, ref.revision
            if key not in self._snapshots:
                self._say(f"{ref.name}: {ref.hub}, revision {ref.revision or 'main'}, of the hub")
                self._snapshots[key] = hub_folder(ref)
            return self._snapshots[key]
        stage = stage_file(ref)
        return self._folders[stage] if stage is not None else _one_folder(ref)

    def _train_wave(self, wave: Sequence[Stage], need_cluster: Callable[[], None]) -> None:
        from safemerge.distributed.train import StageRun, run_stages

        runs: dict[Path, StageRun] = {}
        for stage in wave:
            spec = stage.load()
            base = self._folder(spec.base)
            base_fingerprint = fingerprint(base)
            mixture = load_mixture(spec, ChatFormat(base, spec.chat))
            key = ingredient_digest(spec, base_fingerprint=base_fingerprint, mixture=mixture)
            folder = ingredient_folder(spec.name, key)
            self._folders[stage] = folder
            text = settings_text(dict(stage.settings))
            label = f"{spec.name}[{text}]" if text else spec.name
            cut = [count.words for count in mixture.cut]
            if folder not in runs:
                for words in cut:
                    self._say(f"{label}: {words}")
            if is_finished(folder):
                self._say(f"{label}: cached ({folder.name})")
                self._tell_measures(label, folder)
                continue
            if folder in runs:
                self._say(f"{label}: the same as {runs[folder].label}")
                continue
            model = bare_model(base)
            if spec.parameters == "lora" and spec.adapter is None:
                check_targets(model, spec.lora, where=spec.name)
            rows = sum(mixture.sizes)
            self._say(f"{label}: training {spec.steps} steps on {rows} samples (Ray Train)")
            provenance = {"digest": key, "base_fingerprint": base_fingerprint, "cut_rows": cut}
            runs[folder] = StageRun(spec, base, folder, provenance, label)
        if runs:
            need_cluster()
            run_stages(list(runs.values()), on_progress=self._on_step, restart=self._restart)
            for folder, run in runs.items():
                self._tell_measures(run.label, folder)

    def _tell_measures(self, label: str, folder: Path) -> None:
        for line in measure_lines(read_json(folder / MARKER).get(MEASURED, {})):
            self._say(f"{label}: {line}")


def _plain(refs: Sequence[CheckpointRef]) -> Iterator[CheckpointRef]:
    """Yield references; of one that is made of others, these, under names of their own."""
    for ref in refs:
        yield from _plain(_named_parts(ref))
        if ref.on is not None:
            yield ref.model_copy(update={"on": None, "digest": None})
        elif not ref.parts:
            yield ref


def _named_parts(ref: CheckpointRef) -> list[CheckpointRef]:
    return [
        part.model_copy(update={"name": f"{ref.name}--{at}"}) for at, part in enumerate(ref.parts)
    ]


def _joined(ref: CheckpointRef, resolved: Mapping[str, CheckpointRef]) -> CheckpointRef:
    """The resolved reference; one that is made of others is put together again.

    Raises:
        ConfigError: If it is made of other weights than its digest says.
    """
    if not ref.parts:
        return resolved[ref.name]
    made = [
        _joined(named, resolved).model_copy(update={"name": part.name})
        for named, part in zip(_named_parts(ref), ref.parts, strict=True)
    ]
    own = resolved[ref.name] if ref.on is not None else None
    whole = (ref if own is None else own.model_copy(update={"on": ref.on})).with_parts(made)
    found = whole.composed_digest(None if own is None else own.digest)
    if ref.digest not in (None, found):
        raise ConfigError(
            f"checkpoint '{ref.name}': weights must have digest {ref.digest}; got {found} of "
            f"{', '.join(str(part.path) for part in made)}. The files changed since the recipe "
            "was written."
        )
    return whole.model_copy(update={"digest": found})
