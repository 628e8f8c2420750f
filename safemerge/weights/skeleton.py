"""A checkpoint's architecture without memory for weights, and the names transformers gives them.

Names in files are not always those in memory: vision-language models have other prefixes there,
experts are stored one by one and held fused. transformers' own conversion mapping decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from safemerge.errors import CheckpointError

BUILD_ERRORS = (
    ArithmeticError, AttributeError, CheckpointError, ImportError, LookupError, OSError,
    RuntimeError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""What transformers raises for configs that it cannot build a model of."""


def bare_model(folder: Path | str) -> Any:
    """Return the model of a folder's config on the meta device: modules and names, no weights.

    Args:
        folder: Folder with config.json.

    Returns:
        The transformers model; see `model_of_config`.

    Raises:
        CheckpointError: If transformers does not know the architecture.
    """
    try:
        return model_of_config(folder_config(folder))
    except BUILD_ERRORS as error:
        raise _unknown(folder, error) from error


def folder_config(folder: Path | str) -> Any:
    """Return a folder's config as transformers reads it.

    Raises:
        CheckpointError: If transformers does not know the architecture, or refuses a value.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except BUILD_ERRORS as error:
        raise _unknown(folder, error) from error


def _unknown(folder: Path | str, error: Exception) -> CheckpointError:
    import transformers

    if isinstance(error, CheckpointError):
        return error
    got = " ".join(str(error).split())[:300] or type(error).__name__
    return CheckpointError(
        f"{Path(folder) / 'config.json'}: must describe an architecture that transformers "
        f"{transformers.__version__} knows; got: {got}. Update transformers, or use a "
        f"supported model."
    )


def model_of_config(config: Any) -> Any:
    """Return the model of transformers' config on the meta device.

    The class is the one that the config names, or else the one transformers uses for causal LMs
    of its type. Code that comes with a checkpoint is never run.

    Args:
        config: As transformers read it.

    Raises:
        Exception: One of `BUILD_ERRORS`, if there is no such model.
    """
    import transformers

    named = getattr(transformers, str(next(iter(config.architectures or ()), "")), None)
    with torch.device("meta"), torch.no_grad():
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named(config)
        return transformers.AutoModelForCausalLM.from_config(config)


def auto_class(folder: Path | str) -> Any:
    """Return the transformers class that loads a folder as a model that continues text.

    Args:
        folder: Folder with config.json.

    Returns:
        ``AutoModelForCausalLM``, or ``AutoModelForImageTextToText`` for vision-language models
        that have no class of their own for text alone.

    Raises:
        CheckpointError: If transformers has neither for the architecture.
    """
    import transformers

    config = folder_config(folder)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    raise CheckpointError(
        f"{Path(folder) / 'config.json'}: must describe a model that continues text; got "
        f"model_type {config.model_type!r}. Use a causal or vision-language model."
    )


@dataclass(frozen=True)
class Conversion:
    """How some tensors in files become parameters in memory, and back."""

    memory: tuple[str, ...]
    """Names of the parameters."""
    stored: tuple[tuple[str, ...], ...]
    """Names in files: one group for each source of the conversion, a list within it."""
    converter: Any = None
    """transformers' converter; None where the tensor is the parameter itself."""
    model: Any = None
    """The bare model, which some operations ask."""

    @property
    def by_expert(self) -> bool:
        """Whether experts, stacked along the first axis, are converted each on its own."""
        from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose

        if self.converter is None:
            return False
        first, *others = self.converter.operations
        return (
            isinstance(first, MergeModulelist)
            and first.dim == 0
            and all(
                (isinstance(op, Concatenate) and op.dim > 0)
                or (isinstance(op, Transpose) and min(op.dim0, op.dim1) > 0)
                for op in others
            )
        )

    def of_expert(self, at: int) -> Conversion:
        """Return the conversion of one expert alone, where `by_expert`."""
        return replace(self, stored=tuple((names[at],) for names in self.stored))

    def expert_of(self, name: str) -> int:
        """Return the place of a stored name in its group."""
        return next(names.index(name) for names in self.stored if name in names)

    def to_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters by name from the tensors in files, all of them."""
        if self.converter is None:
            return {self.memory[0]: tensors[self.stored[0][0]]}
        sources = self.converter.source_patterns
        parts: dict[str, Any] = {
            source: [tensors[name] for name in names]
            for source, names in zip(sources, self.stored, strict=True)
            if names
        }
        parts = self._run(self.converter, parts)
        targets = self.converter.target_patterns
        return {
            name: _one(parts[target]) for name, target in zip(self.memory, targets, strict=True)
        }

    def to_stored(
        self, parameters: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, Tensor]:
        """Return the tensors in files from all parameters: what `to_memory` undoes.

        Args:
            parameters: Tensor by parameter name.
            shapes: Shape in files by stored name.

        Returns:
            Tensor by stored name.

        Raises:
            CheckpointError: If transformers cannot convert them back to those shapes.
        """
        if self.converter is None:
            return {self.stored[0][0]: parameters[self.memory[0]]}
        reverse = self.converter.reverse_transform()
        parts: dict[str, Any] = {
            source: [parameters[name]]
            for source, name in zip(reverse.source_patterns, self.memory, strict=True)
        }
        parts = self._run(reverse, parts)
        found = {}
        for target, names in zip(reverse.target_patterns, self.stored, strict=True):
            for at, name in enumerate(names):
                tensor = _one(parts[target.replace("*", str(at))])
                found[name] = _in_shape(name, tensor, tuple(shapes[name]))
        return found

    def _run(self, transform: Any, parts: dict[str, Any]) -> dict[str, Any]:
        for operation in transform.operations:
            parts = operation.convert(
                parts,
                source_patterns=transform.source_patterns,
                target_patterns=transform.target_patterns,
                full_layer_name=self.memory[0],
                model=self.model,
                config=self.model.config,
            )
        return parts


def conversions(model: Any, names: Iterable[str]) -> list[Conversion]:
    """Return how transformers reads a checkpoint's tensors into a model.

    Args:
        model: The model, maybe a bare one.
        names: Names in the checkpoint's files.

    Returns:
        A conversion for each set of tensors that belong together; tensors that the model does
        not have are in none.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    by_source = {source: entry for entry in converters for source in entry.source_patterns}
    known = dict.fromkeys(model.state_dict(), True)
    prefix = model.base_model_prefix
    plain: list[Conversion] = []
    converted: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for name in sorted(names, key=dot_natural_key):
        parameter, source = rename_source_key(name, renamings, converters, prefix, known)
        if parameter not in known and name in known:
            parameter, source = name, None
        if parameter not in known:
            continue
        if source is None:
            plain.append(Conversion((parameter,), ((name,),)))
        else:
            _, groups = converted.setdefault(parameter, (by_source[source], {}))
            groups.setdefault(source, []).append(name)
    return plain + [
        Conversion(
            tuple(
                first.replace(entry.target_patterns[0], target) for target in entry.target_patterns
            ),
            tuple(tuple(groups.get(source, ())) for source in entry.source_patterns),
            entry,
            model,
        )
        for first, (entry, groups) in converted.items()
    ]


def _one(part: Any) -> Tensor:
    tensor: Tensor = part[0] if isinstance(part, list) else part
    return tensor


def _in_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) == shape:
        return tensor
    if tensor.numel() == torch.Size(shape).numel():
        # transformers squeezes split experts, and reads some fused ones in either orientation.
        dense = tuple(size for size in shape if size != 1)
        if tuple(size for size in tensor.shape if size != 1) == dense:
            return tensor.reshape(shape)
        if tuple(tensor.transpose(-1, -2).shape) == shape:
            return tensor.transpose(-1, -2)
    raise CheckpointError(
        f"tensor '{name}': must be converted back to its shape in the file, {shape}; got "
        f"{tuple(tensor.shape)}. Save the base anew with transformers' save_pretrained."
    )
