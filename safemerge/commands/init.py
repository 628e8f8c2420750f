"""``safemerge init``: a study file for the user's own models."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from safemerge.commands.console import Console
from safemerge.commands.study_text import GUARDS, Answers, Model, study_text
from safemerge.config.checkpoint import CheckpointRef, Vocabulary
from safemerge.config.document import parse_document
from safemerge.config.extra import RUNTIME
from safemerge.config.inputs import ABSENT
from safemerge.config.problems import did_you_mean
from safemerge.config.ready_made import ready_made_names
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import CheckpointMismatchError, PreflightError, UserError
from safemerge.files import replace_file

if TYPE_CHECKING:
    import argparse

    from safemerge.weights.checkpoint import Checkpoint

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SUITES = ["gsm8k", "strongreject"]


def run(options: argparse.Namespace) -> None:
    """Ask what the flags leave out, check the models, and write the study."""
    out = Path(options.out)
    if out.exists() and not options.force:
        raise UserError(f"{out}: exists already. Choose another file with --out, or add --force.")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out: must be a file in a folder that exists; got {str(out)!r}.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PreflightError(f"--out: must be a place that can be written; got {str(out)!r}.")
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise PreflightError(f"init: checks models with {package}; got none. {RUNTIME}")
    console = Console()
    answers = _answers(options)
    fitted = _fitted(answers, console)
    text = study_text(fitted, name=_as_name(out.stem), folder=out.resolve().parent)
    parse_document(yaml.safe_load(text), StudySpec, where=str(out))
    replace_file(out, text)
    console.plain(
        f"written: {out}\n"
        f"  safemerge search {out} --dry-run    loads data and checkpoints, starts nothing\n"
        f"  safemerge search {out}              the search; Ctrl-C is safe"
    )


def _answers(options: argparse.Namespace) -> Answers:
    """Take the flags, and ask on a terminal for what a study cannot do without."""
    base, experts, aligned = options.base, list(options.expert), options.aligned
    suites, judge = list(options.suite), options.judge
    if base is None or not (experts or aligned):
        if not sys.stdin.isatty():
            lacking = "--base" if base is None else "--expert or --aligned"
            raise UserError(
                f"init: a study needs a base and one more model; got no {lacking}. Example: "
                "safemerge init --base ORG/NAME --expert math=PATH --aligned PATH"
            )
        base = base or _ask("base model (folder or hub id)", needed=True)
        while True:
            needed = not experts
            more = _ask(f"{'next ' * bool(experts)}expert, [NAME=]folder or hub id", needed=needed)
            if not more:
                break
            experts.append(more)
        aligned = aligned or _ask("aligned (safe) model, if you have one")
        if not suites:
            print(f"ready-made suites: {', '.join(ready_made_names())}")
            suites = _ask(f"suites, by blanks [{' '.join(_SUITES)}]").split()
        judge = judge or _ask(f"guard model for the report, hub id or {'|'.join(GUARDS)}=folder")
    unknown = [name for name in suites if name not in ready_made_names()]
    if unknown:
        advised = did_you_mean(unknown[0], ready_made_names())
        raise UserError(f"--suite: no such ready-made suite; got {unknown[0]!r}. {advised}")
    models = [_model(text, flag="--expert") for text in experts]
    if aligned:
        models.insert(0, _model(f"aligned={aligned}", flag="--aligned")._replace(aligned=True))
    names = ["base", *(model.name for model in models)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"--expert: names must be unique, and not base; got {twice!r} more than once. "
            "Give another: --expert NAME=PATH."
        )
    return Answers(
        base=_model(f"base={base}", flag="--base"),
        experts=tuple(models),
        suites=tuple(dict.fromkeys(suites or _SUITES)),
        judge=_judge(judge),
        engine="vllm" if find_spec("vllm") else "transformers",
    )


def _ask(question: str, *, needed: bool = False) -> str:
    while True:
        try:
            text = input(f"{question}{'' if needed else ' (Enter: none)'}: ").strip()
        except EOFError:
            raise UserError("init: the answers ended before the study was whole.") from None
        if text or not needed:
            return text


def _model(text: str, *, flag: str) -> Model:
    """Read ``[NAME=]PLACE``; a place is a folder, or else a hub id."""
    name, given, place = text.partition("=")
    if not given:
        name, place = "", text
    folder = Path(place).expanduser()
    if folder.is_dir():
        place = str(folder.resolve())
    elif not _HUB.fullmatch(place) or place.startswith("."):
        raise UserError(
            f"{flag}: must be a folder, or a hub id ORG/NAME; got {place!r}. Check the path."
        )
    name = name or _as_name(Path(place).name)
    if not _NAME.fullmatch(name) or len(name) > 64:
        raise UserError(
            f"{flag}: a name has letters, digits, '-' and '_'; got {name!r}. Write NAME=PATH."
        )
    return Model(name, place, is_hub=not folder.is_dir())


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:64] or "study"


def _judge(text: str | None) -> tuple[str, Model] | None:
    """Read a guard: ``[FAMILY=]PLACE``; families of known hub ids need not be given."""
    if not text or text == "refusal_proxy":
        return None
    family, given, place = text.partition("=")
    if not given:
        place = text
        short = re.sub(r"[^a-z0-9]", "", Path(place).name.lower())
        family = next((name for name, mark in GUARDS.items() if mark in short), "")
    if family not in GUARDS:
        raise UserError(
            f"--judge: must say the guard's family; got {text!r}. Write FAMILY=PLACE, FAMILY one "
            f"of {', '.join(GUARDS)}."
        )
    return family, _model(f"guard={place}", flag="--judge")


def _fitted(answers: Answers, console: Console) -> Answers:
    """Compare the models that can be looked at, and choose what lets them merge.

    Raises:
        CheckpointError: If one cannot be read.
        CheckpointMismatchError: If they cannot be merged.
    """
    from safemerge.api.prepare import check_loadable
    from safemerge.weights.adapter import is_adapter, open_checkpoint

    places = {model.name: _folder(model) for model in (answers.base, *answers.experts)}
    unseen = [name for name, folder in places.items() if folder is None]
    if unseen:
        console.say(
            f"not checked, for the hub's cache lacks them: {', '.join(unseen)}. "
            "`safemerge search --dry-run` checks what is there."
        )
    base_folder = places.pop("base")
    if base_folder is None:
        return answers
    base = open_checkpoint(base_folder)
    if is_adapter(base_folder):
        raise UserError(f"--base: must be a whole model; got an adapter, {base_folder}.")
    experts = {
        name: open_checkpoint(folder, base if is_adapter(folder) else None)
        for name, folder in places.items()
        if folder is not None
    }
    answers = _agreeing(answers, base, experts, console)
    answers = answers._replace(
        max_model_len=min(2048, _context(base.config) or 2048),
        template_from=_template_owner({"base": base, **experts}),
    )
    check_loadable(_stub(answers))
    total = base.num_parameters / 1e9
    console.say(
        f"base: {total:.2f} B parameters; agree with it: {', '.join(experts) or 'none seen'}"
    )
    return answers


def _folder(model: Model) -> Path | None:
    """A model's folder; None of a hub model that the cache does not hold."""
    from safemerge.errors import CheckpointError
    from safemerge.weights.hub import hub_snapshot

    if not model.is_hub:
        return Path(model.place)
    try:
        return hub_snapshot(model.place, where=f"model '{model.name}'", download=False)
    except CheckpointError:
        return None


def _agreeing(
    answers: Answers, base: Checkpoint, experts: dict[str, Checkpoint], console: Console
) -> Answers:
    """Try the strictest way to merge first; say what the one that works gives up."""
    from safemerge.merge.resident import ResidentCheckpoints
    from safemerge.weights.agreement import dtype_name

    stored = max(map(base.dtype, base.names), key=lambda dtype: (dtype.itemsize, str(dtype)))
    refs = {
        name: CheckpointRef(name=name, path=str(one.folder))
        for name, one in {"base": base, **experts}.items()
    }
    tried: list[tuple[Vocabulary, str]] = [
        (vocabulary, dtype)
        for vocabulary in ("refuse", "base", "union")
        for dtype in ("base", dtype_name(stored))
    ]
    refused: CheckpointMismatchError | None = None
    for vocabulary, dtype in tried:
        recipe = MergeRecipe.model_validate(
            {
                "base": refs["base"],
                "experts": [refs[name] for name in experts],
                "method": {"name": "linear", "weights": {"base": 1.0}},
                "dtype": dtype,
                "vocabulary": vocabulary,
            }
        )
        try:
            notices = ResidentCheckpoints.open(recipe, for_engine=True).notices
        except CheckpointMismatchError as error:
            refused = refused or error
            continue
        for notice in notices:
            console.say(f"note: {notice}")
        return answers._replace(vocabulary=vocabulary, dtype=dtype)
    assert refused is not None
    raise refused


def _context(config: dict[str, object]) -> int | None:
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else config
    found = inner.get("max_position_embeddings", inner.get("n_positions"))
    return found if isinstance(found, int) and found >= 16 else None


def _template_owner(models: dict[str, Checkpoint]) -> str | None:
    """Name of the first model with a chat template; None if it is the base or none has one."""
    from safemerge.inputs import text_digests

    has = [
        name
        for name, one in models.items()
        if text_digests(Path(one.folder)).get("chat_template", ABSENT) != ABSENT
    ]
    return has[0] if has and has[0] != "base" else None


def _stub(answers: Answers) -> StudySpec:
    text = study_text(answers, name="study", folder=Path.cwd())
    return parse_document(yaml.safe_load(text), StudySpec, where="init")
