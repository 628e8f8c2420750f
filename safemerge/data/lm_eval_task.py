"""Tasks of lm-evaluation-harness: their documents, their requests, and what answers are worth.

The harness writes the prompts, draws worked examples, extracts answers and scores them; which
documents are asked, and who answers, is decided here. References: Gao et al., A framework for
few-shot language model evaluation, v0.4 (``lm_eval`` on PyPI).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from safemerge.config.base import digest
from safemerge.config.problems import did_you_mean
from safemerge.config.source import Source
from safemerge.config.suite import LmEval
from safemerge.data.rows import taken_ids
from safemerge.data.sample import Sample, sample_id
from safemerge.errors import ConfigError, DataError, PreflightError

FEWSHOT_SEED = 1234
"""Seed by which worked examples are drawn: the harness's own."""

_WHERE_DATA_LIE = ("dataset_path", "dataset_kwargs", "metadata")


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep the harness's log lines, progress bars and warnings off the terminal."""
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


class LmEvalTask:
    """One task with its documents.

    Args:
        spec: Which task, and how it is asked.
        where: Place for messages.

    Raises:
        PreflightError: If lm-evaluation-harness is not installed.
        ConfigError: If there is no such task, metric or filter, a metric's direction is the
            other one, or the task needs what no engine here does: sampling, repeats, images,
            or running what a model wrote.
        DataError: If the task's data cannot be loaded.
    """

    def __init__(self, spec: LmEval, *, where: str) -> None:
        self.spec = spec
        self._where = where
        with quiet_harness():
            self._task = _loaded(spec, where)
            _set_shots(self._task, spec, where)
            self._check()
            self._documents: list[Any] = list(self._task.eval_docs)
        # By content alone, so that tasks over the same documents cut them alike.
        self._first: dict[str, int] = {}
        for index, document in enumerate(self._documents):
            self._first.setdefault(sample_id("lm_eval", _key(document)), index)
        self._index = {self._identity(index): index for index in self._first.values()}

    def _identity(self, index: int) -> str:
        return sample_id(self.spec.task, _key(self._documents[index]))

    @property
    def definition(self) -> str:
        """Digest of how the task asks and scores: its file, functions, worked examples, version.

        The documents that are asked, and where data lie, do not count.
        """
        config = {
            key: value
            for key, value in self._task.dump_config().items()
            if key not in _WHERE_DATA_LIE
        }
        # NOTE: what has no source is written with its address, which is another one each time.
        text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(config, sort_keys=True, default=str))
        return digest([text, sorted(self._shown()), metadata.version("lm_eval")])

    @property
    def filter_name(self) -> str:
        """The filter whose answers are scored."""
        names = self._filter_names()
        return names[0] if self.spec.filter is None else self.spec.filter

    def _filter_names(self) -> list[str]:
        declared = getattr(self._task.config, "filter_list", None)
        return [item["name"] for item in declared] if declared else ["none"]

    def _check(self) -> None:
        task, spec, where = self._task, self.spec, self._where
        filters = self._filter_names()
        if spec.filter is None and len(filters) > 1:
            raise ConfigError(
                f"{where}: filter must be named for a task with several; got none. "
                f"Known: {', '.join(filters)}."
            )
        if spec.filter is not None and spec.filter not in filters:
            advice = did_you_mean(spec.filter, filters)
            raise ConfigError(f"{where}: no such filter; got {spec.filter!r}. {advice}")
        known, higher = list(task.aggregation()), task.higher_is_better()
        for metric, direction in spec.metrics.items():
            if metric not in known:
                advice = did_you_mean(metric, known)
                raise ConfigError(f"{where}: no such metric; got {metric!r}. {advice}")
            better = higher.get(metric)
            if better is not None and bool(better) != (direction == "maximize"):
                raise ConfigError(
                    f"{where}: metrics.{metric} must be the direction that the task declares; "
                    f"got {direction}. Write the other one."
                )
        generation = getattr(task.config, "generation_kwargs", None) or {}
        sampled = generation.get("do_sample") or (
            generation.get("do_sample") is None and float(generation.get("temperature", 0)) > 0
        )
        for needs, what in (
            (bool(sampled), "samples its answers"),
            ((getattr(task.config, "repeats", 1) or 1) > 1, "asks each question several times"),
            (getattr(task, "UNSAFE_CODE", False), "runs what the model writes"),
            (getattr(task, "MULTIMODAL", False), "shows pictures or sounds"),
        ):
            if needs:
                raise ConfigError(
                    f"{where}: a task must ask texts once, greedily, and score the answer; got "
                    f"{spec.task!r}, which {what}. Choose another task."
                )

    def samples(self, source: Source, *, where: str) -> tuple[Sample, ...]:
        """Return the documents of a range, in the task's order, to be compared between splits.

        Equal documents count once. Tasks over the same documents have the same ones in a range.

        Args:
            source: Which range; see `safemerge.data.rows.taken_ids`.
            where: Place for messages.

        Raises:
            DataError: If the range is empty, or worked examples come from the documents that
                are asked.
        """
        taken = taken_ids(source, list(self._first), name=self.spec.task, where=where)
        places = sorted(self._first[identity] for identity in taken)
        chosen = [(self._identity(at), at) for at in places]
        shown = self._shown()
        clash = [identity for identity, at in chosen if _key(self._documents[at]) in shown]
        if clash:
            raise DataError(
                f"{where}: worked examples must not be asked; got {clash[0]} among them: the task "
                "draws examples from the documents it asks. Set num_fewshot: 0, or name a "
                "fewshot_split in the task's file."
            )
        with quiet_harness():
            texts = _own_texts([self._text(document) for document in self._documents])
            return tuple(
                Sample(identity, self._text(self._documents[at]), content=texts[at])
                for identity, at in chosen
            )

    def _shown(self) -> frozenset[str]:
        """Every document that a worked example may be made of."""
        sampler = getattr(self._task, "sampler", None)
        if not self._task.config.num_fewshot or sampler is None:
            return frozenset()
        return frozenset(_key(document) for document in sampler.fewshot_docs() or [])

    def _text(self, document: Any) -> str:
        text = self._task.doc_to_text(document)
        if not isinstance(text, str):
            # Options that are put into the question: they hold its words.
            text = "\n".join(map(str, self._task.doc_to_choice(document)))
        return text if text.strip() else str(self._task.doc_to_target(document))

    def positions(self, samples: Sequence[Sample]) -> list[int]:
        """Return where samples stand among the task's documents, as the harness counts them."""
        return [self._index[sample.sample_id] for sample in samples]

    def asked(
        self, samples: Sequence[Sample], chat_template: Callable[..., str]
    ) -> LmEvalQuestions:
        """Write the requests of some samples.

        Args:
            samples: Of `samples`, in its order.
            chat_template: Turns messages into text; used if the suite asks in the chat format.
        """
        task = copy.copy(self._task)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        with quiet_harness():
            task.build_all_requests(
                samples=self.positions(samples),
                system_instruction=self.spec.system,
                apply_chat_template=self.spec.chat_template,
                fewshot_as_multiturn=True,
                chat_template=chat_template if self.spec.chat_template else None,
            )
        return LmEvalQuestions(task, self.filter_name)


class LmEvalQuestions:
    """The requests of one split, and how their answers are scored.

    Args:
        task: The harness's task, its requests built.
        filter_name: The filter whose answers are scored.
    """

    def __init__(self, task: Any, filter_name: str) -> None:
        self._task = task
        self._filter_name = filter_name

    @property
    def instances(self) -> list[Any]:
        """The harness's requests; all of one document stand together."""
        return list(self._task.instances)

    def values(self, answers: Sequence[Any]) -> list[dict[str, Any]]:
        """Score one candidate's answers, one per instance.

        Args:
            answers: What the harness expects of a model: a text, a pair of log-probability and
                whether it is greedy, or a log-probability.

        Returns:
            Per document the task's values by metric; not always numbers.
        """
        for instance, answer in zip(self._task.instances, answers, strict=True):
            instance.resps, instance.filtered_resps = [answer], {}
        with quiet_harness():
            self._task.apply_filters()
            by_document: dict[int, list[Any]] = {}
            for instance in self._task.instances:
                by_document.setdefault(instance.doc_id, []).append(instance)
            return [
                dict(
                    self._task.process_results(
                        group[0].doc,
                        [one.filtered_resps[self._filter_name] for one in _in_order(group)],
                    )
                )
                for _, group in sorted(by_document.items())
            ]

    def is_mean(self, metric: str) -> bool:
        """Tell whether a metric is the plain mean of its documents' values."""
        from lm_eval.api.metrics import mean

        return self._task.aggregation()[metric] is mean

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """Return a metric of documents' values, as the task aggregates them."""
        with quiet_harness():
            return float(self._task.aggregation()[metric](list(values)))


def _in_order(group: Sequence[Any]) -> list[Any]:
    return sorted(group, key=lambda instance: instance.idx)


def _key(document: Any) -> str:
    return json.dumps(document, sort_keys=True, default=str)


def _own_texts(texts: Sequence[str]) -> list[str]:
    """Cut off what all texts begin and end with: the task's fixed words."""
    if len(texts) < 2:
        return list(texts)
    head = _num_shared(texts)
    rest = [text[head:] for text in texts]
    tail = _num_shared([text[::-1] for text in rest])
    return [text[: len(text) - tail] for text in rest]


def _num_shared(texts: Sequence[str]) -> int:
    """Characters that all texts begin with: those that the first and the last in order share."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (one, other) in pairs if one != other), len(first))


@functools.cache
def _manager(include_path: str | None, *, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=defaults)


def _loaded(spec: LmEval, where: str) -> Any:
    if spec.include_path is not None and not Path(spec.include_path).is_dir():
        raise DataError(f"{where}: no such folder of task files; got {spec.include_path}.")
    try:
        manager = None
        if spec.include_path is not None:
            # The harness has thousands of task files: they are read only if they are needed.
            manager = _manager(spec.include_path, defaults=False)
        if manager is None or spec.task not in manager.all_tasks:
            manager = _manager(spec.include_path, defaults=True)
    except ImportError as error:
        raise PreflightError(
            f"{where}: an lm_eval task needs lm-evaluation-harness; got: {error}. "
            "Install safemerge[lm-eval]."
        ) from None
    if spec.task not in manager.all_subtasks:
        if spec.task in manager.all_tasks:
            raise ConfigError(
                f"{where}: lm_eval.task must be one task; got the group or tag {spec.task!r}. "
                "Name its tasks in suites of their own, and take their mean with `aggregates`."
            )
        advice = did_you_mean(spec.task, manager.all_subtasks)
        raise ConfigError(f"{where}: no such lm_eval task; got {spec.task!r}. {advice}")
    _check_code(spec, manager.task_index[spec.task].yaml_path, where)
    try:
        (task,) = manager.load([spec.task])["tasks"].values()
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise DataError(
            f"{where}: the data of lm_eval task '{spec.task}' cannot be loaded; got: {reason} "
            "Check the data set's name, the network and the cache."
        ) from error
    return task


def _check_code(spec: LmEval, file: Path | None, where: str) -> None:
    """Refuse a task file that names functions, unless it is the harness's own or may.

    Templates of all task files run in a sandbox: Jinja's plain ones reach any of Python's objects.
    """
    import lm_eval
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        sandbox = SandboxedEnvironment(
            loader=utils.env.loader, undefined=utils.env.undefined, keep_trailing_newline=True
        )
        sandbox.filters.update(utils.env.filters)
        utils.env = sandbox
    if spec.allow_code or file is None:
        return
    own = Path(lm_eval.__file__).resolve().parent
    try:
        named = [found for found in _functions(file, set()) if own not in found[0].parents]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{where}: {file} cannot be read; got: {error}. Correct it.") from None
    if named:
        place, function = named[0]
        raise ConfigError(
            f"{where}: a task file must name no Python functions unless the study says "
            f"allow_code: true; got !function {function} in {place}. Read what it runs, then "
            "write `allow_code: true` beside include_path."
        )


def _functions(file: Path, seen: set[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the functions that a task file and those that it includes name, and where."""
    file = file.expanduser().resolve()
    if file in seen:
        return
    seen.add(file)
    root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    pending, looked_at = [root], set()
    while pending:
        node = pending.pop()
        if node is None or id(node) in looked_at:
            continue  # an alias is the same node again
        looked_at.add(id(node))
        if node.tag == "!function":
            yield file, str(node.value)
        if isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            pending.extend(item for pair in node.value for item in pair)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "include":
            items = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for item in items:
                yield from _functions(file.parent / item.value, seen)


def _set_shots(task: Any, spec: LmEval, where: str) -> None:
    own = task.get_config("num_fewshot")
    if spec.num_fewshot is not None and own == 0 and spec.num_fewshot > 0:
        raise ConfigError(
            f"{where}: num_fewshot must be 0, which the task fixes; got {spec.num_fewshot}. "
            "Drop it."
        )
    task.set_config("num_fewshot", (own or 0) if spec.num_fewshot is None else spec.num_fewshot)
