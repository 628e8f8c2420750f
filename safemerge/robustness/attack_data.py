"""What attacks are made of: enough rows, none that the hardening or the suites have seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.source import PromptData
from safemerge.config.training import FinetuneSpec, PoisonSpec, TrainingSpec
from safemerge.data.overlap import near_duplicates
from safemerge.data.rows import load_rows, own_words
from safemerge.data.sample import Row, normalized_text
from safemerge.data.suite import LoadedSuite, check_training, dropped_lines, load_splits
from safemerge.errors import DataError
from safemerge.robustness.spec import RobustnessSpec


def check_attack_data(
    spec: RobustnessSpec,
    stages: Sequence[TrainingSpec],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, LoadedSuite]]:
    """Load what the attacks and the measurements need, and refuse what would spoil them.

    Args:
        spec: The measurement, located.
        stages: Every training file behind the methods.
        say: Called with a line for each suite that rows are left out of.

    Returns:
        The suites by split and name: those of the measured split, and of the search split where
        an attacker searches.

    Raises:
        DataError: If a source is unreadable; a set has fewer rows than the largest attack takes;
            a suite's prompt is among the rows of the attack or of a stage; or a harmful row of
            the attack (or of its loss curve) is among the rows of a stage, nearly or word for
            word, or in both poison and curve.
    """
    loaded = load_splits(spec.suites)
    for line in dropped_lines(spec.suites, loaded):
        say(line)
    asked = {spec.split: loaded[spec.split]}
    if spec.attacker is not None:
        asked["search"] = loaded["search"]
    _check_sizes(spec)
    attack = FinetuneSpec(
        name="attack",
        base=CheckpointRef(name="hardened", path="."),
        data=spec.finetune.data,
        poison=PoisonSpec(ratio=1.0, data=spec.finetune.poison),
        steps=1,
    )
    for suites in asked.values():
        check_training([*stages, attack], suites)
    seen: dict[str, PromptData] = {
        f"{stage.name}.{place}": data
        for stage in stages
        for place, data in stage.training_sets.items()
    }
    similarity = spec.harm.max_similarity
    _check_unseen("finetune.poison", spec.finetune.poison, seen, similarity)
    if spec.finetune.curve is not None:
        seen["finetune.poison"] = spec.finetune.poison
        _check_unseen("finetune.curve", spec.finetune.curve, seen, similarity)
    return {split: {suite.name: suite for suite in suites} for split, suites in asked.items()}


def attack_content(spec: RobustnessSpec) -> str:
    """Return a digest of every row that attacks may draw or measure the loss of."""
    content = hashlib.sha256()
    sets = [*spec.finetune.data, spec.finetune.poison]
    sets += [spec.finetune.curve] if spec.finetune.curve is not None else []
    for data in sets:
        settings = data.model_dump(mode="json", exclude={"source"})
        ids = [row.sample_id for row in load_rows(data.source, where="finetune")]
        content.update(json.dumps([settings, ids]).encode())
    return content.hexdigest()[:16]


def suite_content(suite: LoadedSuite) -> str:
    """Return a digest of what a suite asks and how it scores."""
    asked = [[item.sample_id, item.prompt, item.label, item.system] for item in suite.samples]
    more = [item for item in (dict(suite.chat), suite.strip_thinking) if item]
    text = json.dumps([suite.task.resolved(), suite.split, asked, *more])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_sizes(spec: RobustnessSpec) -> None:
    sizes = [
        (round(n * p), n, p)
        for attack in spec.attacks
        for n in attack.num_samples
        for p in attack.poison_ratios
    ]
    if (tried := spec.attacker) is not None:
        n, ends = tried.num_samples, tried.poison_ratio
        sizes += [(round(n * p), n, p) for p in (ends.low, ends.high)]
    needed, n, p = max(sizes)
    _check_size("finetune.poison", spec.finetune.poison, needed, n=n, p=p)
    needed, n, p = max((n - harmful, n, p) for harmful, n, p in sizes)
    total = sum(item.weight for item in spec.finetune.data)
    for index, item in enumerate(spec.finetune.data):
        count = round(needed * item.weight / total)
        _check_size(f"finetune.data.{index}", item, count, n=n, p=p)


def _check_size(where: str, data: PromptData, needed: int, *, n: int, p: float) -> None:
    found = len(load_rows(data.source, where=where))
    if found < needed:
        raise DataError(
            f"{where}: must have {needed} rows for n={n} at p={p:g}; got {found}. Widen its "
            "range, or lower num_samples or poison_ratios."
        )


def _check_unseen(
    where: str, data: PromptData, seen: Mapping[str, PromptData], similarity: float | None
) -> None:
    fresh = _texts(data, where)
    for place, other in seen.items():
        known = _texts(other, place)
        texts = {normalized_text(text) for _, text in known}
        ids = {row.sample_id for row, _ in known}
        shared = [
            row.sample_id
            for row, text in fresh
            if row.sample_id in ids or normalized_text(text) in texts
        ]
        if shared:
            raise DataError(
                f"{where}: must share no prompt with {place}, or the attack is one that was "
                f"trained against; got {len(shared)} shared, e.g. {', '.join(shared[:3])}. Take "
                "ranges of rows that do not overlap."
            )
        if similarity is None:
            continue
        near = near_duplicates(
            [text for _, text in known], [text for _, text in fresh], threshold=similarity
        )
        if near:
            pair = f"{fresh[near[0].right][0].sample_id} and {known[near[0].left][0].sample_id}"
            raise DataError(
                f"{where}: must hold no near-duplicate of a prompt of {place}; got {len(near)}, "
                f"e.g. {pair}, {near[0].similarity:.2f}. Use other rows, or raise "
                "harm.max_similarity (null: equal prompts only)."
            )


def _texts(data: PromptData, where: str) -> list[tuple[Row, str]]:
    rows = load_rows(data.source, where=where)
    return [(row, own_words(data.prompt, row, where=where)) for row in rows]
