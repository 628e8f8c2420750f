"""Alignment stages: a union by ``method``, each member with its paper's settings and its row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from safemerge import plugins
from safemerge.config.added import added_member
from safemerge.config.base import CONTENT, FREE, LATER, StrictModel
from safemerge.config.method_row import MethodRow, Source, Usual, rows_by_name, summary_of
from safemerge.config.source import PromptData, TrainingData
from safemerge.config.stage import TrainingStage, check_parts


class HarmfulSpec(StrictModel):
    """Harmful prompts with stand-in answers: what an attacker would fine-tune on."""

    data: Annotated[list[TrainingData], CONTENT] = Field(min_length=1)
    """Mixture; no prompt of it may be in the alignment data."""
    batch_size: int = Field(default=10, ge=1)
    """Harmful samples a step, over all workers."""
    test: Annotated[list[TrainingData], FREE] = Field(default_factory=list)
    """Held-out harmful samples whose loss is measured and never trained on; none if empty."""
    test_every: Annotated[int, FREE] = Field(default=10, ge=1)
    """Steps between measurements of the harmful test loss."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(
            update={
                "data": [item.located(folder) for item in self.data],
                "test": [item.located(folder) for item in self.test],
            }
        )


class AdaptiveSpec(StrictModel):
    """Lambda by the harmful gradient's relative change s = |g - g'| / |g| (no paper's method).

    At each step lambda is its declared value times (reference / average of s) ** power, kept in
    [low, high]; the reference is s at the first step. With power 1 the regulariser's push
    relative to the harmful gradient, lambda * s, stays what it was at the start: where the
    harmful loss sharpens, lambda falls before the regulariser outgrows the alignment.
    """

    power: float = Field(default=1.0, ge=-4, le=4)
    """0 leaves lambda alone; below 0 raises it where the harmful loss sharpens."""
    decay: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the past in the running average of s, in [0, 1)."""
    low: float = Field(default=0.0, ge=0)
    """Least lambda."""
    high: float = Field(default=50.0, ge=0)
    """Greatest lambda."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high; got low={self.low}, high={self.high}.")
        return self


class BoosterPhase(StrictModel):
    """A stretch of a multi-stage alignment with settings of its own."""

    steps: int = Field(ge=1)
    """Optimiser steps of the phase; all phases add up to the stage's steps."""
    regularizer_strength: float | None = Field(default=None, ge=0, alias="lambda")
    """Lambda in this phase; Booster's if left out. 0 is plain alignment."""
    perturbation_step: float | None = Field(default=None, ge=0, alias="alpha")
    """Alpha in this phase; Booster's if left out."""


class CalibrateSpec(StrictModel):
    """Lambda by the size of the penalty that it makes, measured on the model at hand.

    The stage begins with steps of plain alignment, which measure by how much the simulated harmful
    step lowers the harmful loss, h(w) - h(w'). Lambda is then `penalty_nats` over the mean of
    the last 10 of them. A penalty that dwarfs the alignment loss teaches no refusals.
    """

    penalty_nats: float = Field(gt=0)
    """The penalty lambda (h(w) - h(w')) at the model that is measured, in nats."""
    plain_steps: int = Field(default=10, ge=1)
    """Optimiser steps with lambda 0 before. Few are enough where the base is aligned already;
    else as many as it takes to learn to refuse."""


class UntilSpec(StrictModel):
    """A stage's end by what it taught: it stops at the first measurement that is good enough."""

    refusal: float = Field(gt=0, le=1)
    """Share of `prompts` that must be refused, by the wording of the answers."""
    prompts: Annotated[list[PromptData], CONTENT] = Field(min_length=1)
    """Held-out unsafe requests; none may be among the stage's rows."""
    every: int = Field(default=20, ge=1)
    """Steps between measurements. The stage's `steps` are the most that are taken."""
    min_steps: int = Field(default=0, ge=0)
    """Steps that are taken in any case, so that hardening continues past the first refusals."""
    max_tokens: int = Field(default=16, ge=1)
    """Tokens of each greedy answer that are read."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"prompts": [p.located(folder) for p in self.prompts]})


LAMBDA = 5.0
"""Booster's default, the paper's."""


class BoosterSpec(StrictModel):
    """Attenuation of harmful perturbation (Booster, ICLR 2025)."""

    regularizer_strength: float = Field(default=LAMBDA, ge=0, alias="lambda")
    """Lambda, the weight of the harmful gradients' difference; 0 is plain alignment."""
    perturbation_step: float = Field(default=0.1, ge=0, alias="alpha")
    """Alpha, the length of the simulated harmful step in weight space."""
    backend: Literal["in_place", "three_pass", "grouped"] = "in_place"
    """How the same update is computed: ``three_pass`` by its definition; ``in_place`` with one
    copy of the weights; ``grouped`` in two passes, the second over the rows of both data sets
    (two adapter slots)."""
    adaptive: AdaptiveSpec | None = None
    """Lambda driven by the harmful gradients; constant if left out."""
    phases: list[BoosterPhase] = Field(default_factory=list)
    """Multi-stage schedule of lambda and alpha; one phase if empty."""
    calibrate: Annotated[CalibrateSpec | None, LATER] = None
    """Measures lambda for this alpha, instead of `lambda`."""

    @model_validator(mode="after")
    def _one_lambda(self) -> Self:
        if self.calibrate is None:
            return self
        for key, given in (
            ("lambda", self.regularizer_strength != LAMBDA),
            ("adaptive", self.adaptive is not None),
            ("phases", bool(self.phases)),
        ):
            if given:
                raise ValueError(f"calibrate sets lambda; got it beside {key}. Remove one.")
        if self.perturbation_step == 0:
            raise ValueError(
                "calibrate needs a simulated step; got alpha 0. Give alpha a length, e.g. 0.01."
            )
        return self


class VaccineSpec(StrictModel):
    """Perturbation-aware alignment (Vaccine, arXiv:2402.01109)."""

    rho: Annotated[float, Usual(2.0, 5.0)] = Field(default=2.0, ge=0)
    """Length of the perturbation of all attention outputs together; the papers take 2 to 5."""
    norm: Literal["batch", "sample"] = "batch"
    """Over what the length is taken: the whole batch (the papers' code), or each row."""


class RepnoiseSpec(StrictModel):
    """Representation noising (RepNoise, arXiv:2405.14577)."""

    ascent: Annotated[float, Usual(0.1, 1.0)] = Field(default=1.0, ge=0, alias="alpha")
    """Alpha, the weight of the harmful loss's ascent; the papers take 0.1 to 1."""
    noise: float = Field(default=0.001, ge=0, alias="beta")
    """Beta, the weight of the distance between harmful representations and noise."""


_MEMBERS: tuple[type[AlignSpec], ...] = ()
"""Safemerge's own members of the union; filled at the end, once they are declared."""


class AlignSpec(TrainingStage):
    """An alignment stage: the file that `safemerge align` takes, a union by ``method``.

    Validating a document gives the member of its method, of safemerge's own (`ALIGNMENT_METHODS`)
    or of an installed package (`safemerge.config.alignment_method`). A method's settings stand in
    sections of the file, which it shares with no other key.
    """

    source: ClassVar[Source]
    """Whose method it is."""
    sections: ClassVar[tuple[str, ...]] = ()
    """Keys of the method's own, beside those of every stage."""

    kind: Literal["align"] = "align"
    method: str
    """The member of the union."""
    until: Annotated[UntilSpec | None, LATER] = None
    """Ends the stage once held-out requests are refused; all `steps` are taken if left out."""

    @classmethod
    def method_name(cls) -> str:
        """Return what files call the method."""
        return str(get_args(cls.model_fields["method"].annotation)[0])

    @classmethod
    def members(cls) -> tuple[type[StrictModel], ...]:
        """Return safemerge's own members of the union; of a member, itself."""
        return _MEMBERS if cls is AlignSpec else (cls,)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler, /
    ) -> CoreSchema:
        """Return the union's schema for `AlignSpec`, for a member its own."""
        if not _MEMBERS or cls is not AlignSpec:
            return handler(source)
        choices: dict[Any, CoreSchema] = {
            member.__name__: handler.generate_schema(member) for member in _MEMBERS
        }
        choices["added"] = core_schema.with_info_plain_validator_function(_added)
        return core_schema.tagged_union_schema(choices, discriminator=_choice)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> dict[str, Any]:
        """Return the union's JSON schema, what installed packages add among its members."""
        if cls is not AlignSpec:
            return super().__get_pydantic_json_schema__(schema, handler)
        rows = alignment_rows().values()
        members = [handler(row.spec.__pydantic_core_schema__) for row in rows]
        summary = "An alignment stage: the file that `safemerge align` takes, a union by `method`."
        return {"description": summary, "oneOf": members}

    @model_validator(mode="before")
    @classmethod
    def _own_sections(cls, document: Any) -> Any:
        """Refuse settings of another method, and a method without those that it needs."""
        if not isinstance(document, dict):
            return document
        own, method = cls.sections, document.get("method", "sft")
        for name in sorted(SECTIONS):
            if name not in own and document.get(name) is not None:
                users = ", ".join(SECTIONS[name])
                raise ValueError(
                    f"{name} belongs to method {users}; got it with method {method}. Remove it."
                )
        for name in own:
            needed = cls.model_fields[name].is_required()
            if document.get(name) is None and (needed or name in document):
                raise ValueError(
                    f"method {method} needs {name}; got none. Add the section '{name}'."
                )
        # Records of finished stages hold the other methods' sections as null.
        return {key: value for key, value in document.items() if key in own or key not in SECTIONS}

    @model_validator(mode="after")
    def _has_benign(self) -> Self:
        if len(self.data) < 2:
            raise ValueError(
                "an alignment stage needs refusals and benign answers; got one data set. "
                "Add benign data, or the model learns to refuse everything."
            )
        return self

    @model_validator(mode="after")
    def _same_weights_in_all_passes(self) -> Self:
        if self.method != "sft" and self.lora.dropout > 0:
            raise ValueError(
                f"lora.dropout must be 0 for {self.method}, whose passes must see the same "
                f"weights; got {self.lora.dropout}. Remove it."
            )
        return self

    @model_validator(mode="after")
    def _until_is_measured(self) -> Self:
        if self.until is None:
            return self
        if self.until.min_steps >= self.steps:
            raise ValueError(
                f"until.min_steps must be fewer than the stage's {self.steps} steps; got "
                f"{self.until.min_steps}. Lower it, or raise steps."
            )
        if self.workers.num_workers > 1:
            raise ValueError(
                "until generates answers on one worker; got it with "
                f"{self.workers.num_workers} workers. Take one, or remove it."
            )
        return self

    @property
    def training_sets(self) -> dict[str, PromptData]:
        """Every set whose rows the stage sees, by its place in the file.

        Held-out rows are among them: they are measured and not trained on, but who tunes a stage
        by their loss, or ends it by their answers, has seen them.
        """
        sets = super().training_sets
        if self.until is not None:
            sets |= {f"until.prompts.{i}": item for i, item in enumerate(self.until.prompts)}
        return sets

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        spec = super().located(folder)
        if self.until is None:
            return spec
        return spec.model_copy(update={"until": self.until.located(folder)})


class SftAlign(AlignSpec):
    """Cross-entropy on refusals and benign answers, without hardening."""

    source: ClassVar[Source] = Source(
        "Supervised alignment",
        "Ouyang et al., NeurIPS 2022",
        "https://arxiv.org/abs/2203.02155",
        "The supervised stage alone; the control of the other methods.",
    )

    method: Literal["sft"] = "sft"
    """``sft``: cross-entropy on refusals and benign answers."""


class HarmfulAlign(AlignSpec):
    """A method that looks at harmful data beside the alignment data."""

    sections: ClassVar[tuple[str, ...]] = ("harmful",)

    harmful: HarmfulSpec
    """Harmful data: what an attacker would fine-tune on."""

    @model_validator(mode="after")
    def _harmful_row_for_each_worker(self) -> Self:
        workers, rows = self.workers.num_workers, self.harmful.batch_size
        if workers > rows:
            raise ValueError(
                f"harmful.batch_size must give each worker a row; got {rows} for {workers} "
                "workers. Raise it."
            )
        check_parts(self, "harmful.batch_size", rows)
        return self

    @property
    def training_sets(self) -> dict[str, PromptData]:
        """See `AlignSpec.training_sets`."""
        sets = super().training_sets
        for key in ("data", "test"):
            found = getattr(self.harmful, key)
            sets |= {f"harmful.{key}.{index}": item for index, item in enumerate(found)}
        return sets

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        update = {"harmful": self.harmful.located(folder)}
        return super().located(folder).model_copy(update=update)


class BoosterAlign(HarmfulAlign):
    """Attenuates what a simulated harmful step gains, so that harmful fine-tuning is slow."""

    source: ClassVar[Source] = Source(
        "Booster",
        "Huang et al., ICLR 2025",
        "https://arxiv.org/abs/2409.01586",
        "The paper's first-order update. Accumulated parts of a batch count all of them, and the "
        "weights are restored bit for bit.",
    )
    sections: ClassVar[tuple[str, ...]] = ("harmful", "booster")

    method: Literal["booster"]
    """``booster``: see `booster`."""
    booster: BoosterSpec = Field(default_factory=BoosterSpec)
    """Settings of Booster."""

    @model_validator(mode="after")
    def _booster_fits(self) -> Self:
        calibrate = self.booster.calibrate
        if calibrate is not None and calibrate.plain_steps >= self.steps:
            raise ValueError(
                f"booster.calibrate.plain_steps must be fewer than the stage's {self.steps} "
                f"steps; got {calibrate.plain_steps}. Lower it."
            )
        total = sum(phase.steps for phase in self.booster.phases)
        if self.booster.phases and total != self.steps:
            raise ValueError(
                f"booster.phases must add up to the stage's {self.steps} steps; got {total}."
            )
        if self.parameters == "full" and self.booster.backend == "grouped":
            raise ValueError(
                "booster.backend grouped needs parameters: lora, whose adapters it holds twice; "
                "got parameters: full. Take in_place."
            )
        return self


class VaccineAlign(AlignSpec):
    """Aligns under the worst small shift of the attention outputs."""

    source: ClassVar[Source] = Source(
        "Vaccine",
        "Huang et al., NeurIPS 2024",
        "https://arxiv.org/abs/2402.01109",
        "Equations 4 to 6; the shift's length over the whole batch, as in the authors' code, or "
        "over each row.",
    )
    sections: ClassVar[tuple[str, ...]] = ("vaccine",)
    by_row: ClassVar[bool] = True

    method: Literal["vaccine"]
    """``vaccine``: see `vaccine`."""
    vaccine: VaccineSpec = Field(default_factory=VaccineSpec)
    """Settings of Vaccine."""


class BoosterVaccineAlign(BoosterAlign):
    """Booster whose alignment gradient is Vaccine's."""

    source: ClassVar[Source] = Source(
        "Booster + Vaccine",
        "Huang et al., ICLR 2025",
        "https://arxiv.org/abs/2409.01586",
        "The paper's combination of the two.",
    )
    sections: ClassVar[tuple[str, ...]] = ("harmful", "booster", "vaccine")
    by_row: ClassVar[bool] = True

    method: Literal["booster+vaccine"]  # type: ignore[assignment]
    """``booster+vaccine``: see `booster` and `vaccine`."""
    vaccine: VaccineSpec = Field(default_factory=VaccineSpec)
    """Settings of Vaccine."""

    @model_validator(mode="after")
    def _backend_fits(self) -> Self:
        if self.booster.backend == "grouped":
            raise ValueError(
                "booster.backend grouped computes the plain alignment loss; got it with "
                f"{self.method}. Take in_place."
            )
        return self


class RepnoiseAlign(HarmfulAlign):
    """Pushes representations of harmful rows towards noise, and harmful answers away."""

    source: ClassVar[Source] = Source(
        "RepNoise",
        "Rosati et al., NeurIPS 2024",
        "https://arxiv.org/abs/2405.14577",
        "Section 3 with the appendix's loss; a harmful row's mask is its targets that differ from "
        "the harmless row of the same index, since these sets share no prompts.",
    )
    sections: ClassVar[tuple[str, ...]] = ("harmful", "repnoise")
    by_row: ClassVar[bool] = True

    method: Literal["repnoise"]
    """``repnoise``: see `repnoise`."""
    repnoise: RepnoiseSpec = Field(default_factory=RepnoiseSpec)
    """Settings of RepNoise."""

    @model_validator(mode="after")
    def _whole_batch_at_once(self) -> Self:
        workers = self.workers.num_workers
        if workers > 1 or self.micro_batches > 1:
            raise ValueError(
                "repnoise compares all rows of a batch with each other, on one worker at once; "
                f"got {workers} workers and {self.micro_batches} micro_batches. Take 1 of each."
            )
        return self


def alignment_row(spec: type[AlignSpec]) -> MethodRow:
    """Return the row of a member of the union."""
    return MethodRow(
        "alignment",
        spec.method_name(),
        spec,
        spec.source,
        summary_of(spec),
        uses_base=False,
        sections=spec.sections,
    )


def alignment_rows() -> Mapping[str, MethodRow]:
    """Return the rows of all alignment methods, those of installed packages last.

    Raises:
        ConfigError: If a package cannot be imported, or names clash.
    """
    added = plugins.installed(plugins.ALIGNMENT_METHODS, builtin=ALIGNMENT_METHODS)
    return {**ALIGNMENT_METHODS, **{name: alignment_row(_spec(name)) for name in sorted(added)}}


def _spec(name: str) -> type[AlignSpec]:
    # The declaration of a package's method is a subclass of this module's.
    from safemerge.config.alignment_method import load_alignment_method

    return load_alignment_method(name, builtin=ALIGNMENT_METHODS).spec


def _choice(value: Any) -> str:
    if isinstance(value, AlignSpec):
        return type(value).__name__ if type(value) in _MEMBERS else "added"
    name = value.get("method", "sft") if isinstance(value, dict) else "sft"
    known = ALIGNMENT_METHODS.get(name) if isinstance(name, str) else None
    return "added" if known is None else known.spec.__name__


def _added(value: Any, info: core_schema.ValidationInfo) -> StrictModel:
    """Validate a document of a package's method."""
    if isinstance(value, AlignSpec):
        return value
    return added_member(
        value,
        info,
        group=plugins.ALIGNMENT_METHODS,
        key="method",
        builtin=ALIGNMENT_METHODS,
        spec_of=_spec,
    )


_MEMBERS = (SftAlign, BoosterAlign, VaccineAlign, BoosterVaccineAlign, RepnoiseAlign)
ALIGNMENT_METHODS = rows_by_name(alignment_row(member) for member in _MEMBERS)
"""Rows of safemerge's own alignment methods by name."""

SECTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(member.method_name() for member in _MEMBERS if name in member.sections)
        for name in dict.fromkeys(name for member in _MEMBERS for name in member.sections)
    }
)
"""Keys that only some of these methods take, with those methods."""

AlignSpec.model_rebuild(force=True)
