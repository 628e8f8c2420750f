"""A peft adapter put into a bare model by peft itself: which parameters it changes, and how.

peft decides which modules are meant, with what rank and scale, and how its file's keys are
read; here its layers are only looked at, so that a parameter can be merged on its own.

References:
    Hu et al., LoRA, arXiv:2106.09685, section 4.1 (scale lora_alpha / rank).
    Kalajdzievski, rsLoRA, arXiv:2312.03732, definition of rsLoRA (scale lora_alpha / sqrt(rank)).
    Liu et al., DoRA, arXiv:2402.09353, equation 5 (by peft's own layers).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from safemerge.errors import CheckpointError

_NAME = "default"
_PREFIX = "base_model.model."


@runtime_checkable
class Update(Protocol):
    """What an adapter does to a parameter; updates of one follow each other."""

    def apply(self, weight: Tensor) -> Tensor:
        """Return the changed parameter, float32; the argument is not written to."""
        ...


class Copy(NamedTuple):
    """The parameter is stored whole by the adapter."""

    value: Tensor

    def apply(self, weight: Tensor) -> Tensor:
        """Return the stored parameter, in its own dtype."""
        assert weight.shape == self.value.shape, "checked when the adapter was opened"
        return self.value


class Product(NamedTuple):
    """``scale * up @ down`` is added, in the parameter's own orientation."""

    up: Tensor
    down: Tensor
    scale: float
    embedding: bool = False
    transposed: bool = False
    """Whether peft holds the factors the other way round: embeddings, and GPT-2's Conv1D."""

    def apply(self, weight: Tensor) -> Tensor:
        """Return the parameter with the product added."""
        return torch.addmm(weight.float(), self.up.float(), self.down.float(), alpha=self.scale)


class ExpertProducts(NamedTuple):
    """A product for each expert is added, in the parameter's own orientation."""

    up: Tensor
    """Shape (experts, rows, rank)."""
    down: Tensor
    """Shape (experts, rank, columns)."""
    scale: float

    def apply(self, weight: Tensor) -> Tensor:
        """Return the parameter with the products added."""
        return weight.float() + self.scale * (self.up.float() @ self.down.float())

    def of_expert(self, at: int) -> Tensor:
        """Return what is added for one expert, shape (1, rows, columns)."""
        return self.scale * (self.up[at].float() @ self.down[at].float())[None]


class Rows(NamedTuple):
    """Some rows are replaced."""

    at: Tensor
    values: Tensor

    def apply(self, weight: Tensor) -> Tensor:
        """Return the parameter with the rows replaced."""
        return weight.float().index_copy(0, self.at, self.values.float())


@dataclass(frozen=True)
class ByPeft:
    """The parameter is merged by peft's own layer: DoRA, convolutions, biases of factors."""

    layer: Any
    parameter: str
    """Name of the parameter in the layer that is adapted."""
    tensors: Mapping[str, Tensor]
    """The adapter's tensors by their names in the layer."""

    def apply(self, weight: Tensor) -> Tensor:
        """Return the parameter after ``merge`` of a copy of peft's layer that holds it."""
        layer = copy.deepcopy(self.layer)
        base = layer.get_base_layer()
        for name, parameter in list(base.named_parameters(recurse=False)):
            # A parameter that is not asked for only has to be there.
            value = weight if name == self.parameter else torch.zeros(parameter.shape)
            held = torch.nn.Parameter(value.detach().float().clone(), requires_grad=False)
            setattr(base, name, held)
        floats = {name: tensor.float() for name, tensor in self.tensors.items()}
        layer.load_state_dict(floats, strict=False, assign=True)
        with torch.no_grad():
            layer.merge(safe_merge=False, adapter_names=[_NAME])
        merged: Tensor = getattr(base, self.parameter).detach()
        return merged


@dataclass(frozen=True)
class Injection:
    """What an adapter changes, by the names of parameters in memory."""

    updates: Mapping[str, tuple[Update, ...]]
    """Updates in their order, of the parameters that change."""
    together: Mapping[str, int]
    """A number for each parameter, the same where names are one tensor after merging."""


def inject(folder: Path, model: Any, tensors: Mapping[str, Tensor], *, advice: str) -> Injection:
    """Put an adapter into a bare model, as peft does, and return what it changes.

    Args:
        folder: The adapter's.
        model: Model on the meta device; peft's layers are put into it.
        tensors: The adapter's tensors by the names in its file.
        advice: What to do instead, for messages.

    Returns:
        What is changed, and how.

    Raises:
        CheckpointError: If peft cannot put it there, or the tensors are not those that the
            modules, ranks and shapes of this model ask for.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    together = {name: id(parameter) for name, parameter in parameters.items()}
    peft_model, found = _loaded(folder, model, tensors, advice)
    _check_fit(folder, model, found, peft_model.state_dict(), advice)
    changes: dict[int, list[Update]] = {}
    for key, tensor in found.items():
        # Of an adapted embedding peft keeps the base's copy beside the factors.
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if name in parameters:
            changes.setdefault(together[name], []).append(Copy(tensor))
    for name, update in _layers(folder, peft_model, found):
        changes.setdefault(together[name], []).append(update)
    for name, key, copied in _saved_modules(peft_model):
        together[name] = id(copied)
        if key in found:
            changes[id(copied)] = [Copy(found[key])]
    return Injection(
        updates={
            name: tuple(changes[number]) for name, number in together.items() if number in changes
        },
        together=together,
    )


def _loaded(
    folder: Path, model: Any, tensors: Mapping[str, Tensor], advice: str
) -> tuple[Any, dict[str, Tensor]]:
    """The peft model, and the adapter's tensors by their names in it."""
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    found: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        # peft warns of what is checked here: tensors without a place, tied and saved modules.
        warnings.simplefilter("ignore")
        try:
            config = LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            config.lora_dropout = 0.0  # no part of a merge, and refused for fused experts
            config.init_lora_weights = True  # of no consequence, the tensors follow
            config.megatron_config = None  # peft would import the module that the file names
            with torch.device("meta"):
                peft_model = PeftModel(model, config, adapter_name=_NAME)
            peft_model.load_state_dict = lambda state, **_: found.update(state)
            set_peft_model_state_dict(peft_model, dict(tensors), adapter_name=_NAME)
        except (
            ValueError,
            KeyError,
            TypeError,
            # NOTE: of a null where peft reads a table, such as rank_pattern.
            AttributeError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            first = str(error).strip().splitlines()[0][:300] if str(error) else repr(error)
            raise CheckpointError(
                f"{folder}: peft must be able to put the adapter into the base, "
                f"{type(model).__name__}; got: {first} Use the base that the adapter was "
                f"trained on. {advice}"
            ) from error
    del peft_model.load_state_dict
    return peft_model, found


def _check_fit(
    folder: Path,
    model: Any,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    advice: str,
) -> None:
    strange = sorted(set(found) - set(expected))
    if strange:
        raise CheckpointError(
            f"{folder}, tensor '{_as_stored(strange[0])}': must belong to a module that "
            f"adapter_config.json names and the base, {type(model).__name__}, has; got "
            f"{len(strange)} tensors without a place. Use the base that the adapter was trained "
            f"on. {advice}"
        )
    for key, tensor in found.items():
        if tuple(tensor.shape) != tuple(expected[key].shape):
            raise CheckpointError(
                f"{folder}, tensor '{_as_stored(key)}': must have the shape that the base and "
                f"adapter_config.json ask for, {tuple(expected[key].shape)}; got "
                f"{tuple(tensor.shape)}. Use the base that the adapter was trained on, and keep "
                f"config and weights of one training run together."
            )


def _as_stored(key: str) -> str:
    return key.replace(f".{_NAME}", "")


def _layers(
    folder: Path, peft_model: Any, found: Mapping[str, Tensor]
) -> Iterator[tuple[str, Update]]:
    """Updates by parameter name, in the order in which peft merges."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    for path, layer in peft_model.named_modules():
        if not isinstance(layer, LoraLayer | TrainableTokensLayer):
            continue
        inside = {
            key.removeprefix(f"{path}."): tensor
            for key, tensor in found.items()
            if key.startswith(f"{path}.") and not key.startswith(f"{path}.base_layer.")
        }
        owner = path.removeprefix(_PREFIX).removesuffix(".token_adapter")
        while owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
        if not inside:
            continue  # modules whose tensors the file lacks stay the base's: peft adds zero
        wanted = {key for key in layer.state_dict() if not key.startswith("base_layer.")}
        missing = sorted(wanted - set(inside))
        if missing:
            raise CheckpointError(
                f"{folder}, module '{owner}': all of its factors must be stored; got no "
                f"'{_as_stored(missing[0])}', only '{_as_stored(min(inside))}'. Save the adapter "
                f"again."
            )
        if isinstance(layer, LoraLayer):
            yield from _low_rank(folder, owner, layer, inside)
        else:
            index = torch.tensor(layer.token_indices[_NAME])
            yield f"{owner}.weight", Rows(index, *inside.values())


def _low_rank(
    folder: Path, owner: str, layer: Any, inside: Mapping[str, Tensor]
) -> Iterator[tuple[str, Update]]:
    from peft.tuners import lora
    from peft.tuners.lora.layer import ParamWrapper

    if layer.lora_bias.get(_NAME):
        if getattr(layer.get_base_layer(), "bias", None) is None:
            raise CheckpointError(
                f"{folder}, module '{owner}': a bias of factors (lora_bias) is merged into the "
                f"base's bias; got a module without one. Train the adapter without lora_bias."
            )
        yield f"{owner}.bias", ByPeft(layer, "bias", inside)
    scale = layer.scaling[_NAME]
    if isinstance(layer, ParamWrapper):
        name = f"{owner}.{layer.parameter_name}"
        lora_a, lora_b = inside[f"lora_A.{_NAME}.weight"], inside[f"lora_B.{_NAME}.weight"]
        if layer.get_param().dim() == 2:
            yield name, Product(lora_b, lora_a, scale)
            return
        experts = layer.num_experts
        lora_a = lora_a.reshape(experts, -1, lora_a.shape[-1])
        lora_b = lora_b.reshape(lora_b.shape[0], -1, experts).permute(2, 0, 1)
        if layer._did_swap_in_out_features:
            yield name, ExpertProducts(lora_b, lora_a, scale)
        else:
            yield name, ExpertProducts(lora_a.mT, lora_b.mT, scale)
    elif layer.lora_variant or not isinstance(layer, lora.Linear | lora.Embedding):
        yield f"{owner}.weight", ByPeft(layer, "weight", inside)
    elif isinstance(layer, lora.Embedding):
        lora_a, lora_b = inside[f"lora_embedding_A.{_NAME}"], inside[f"lora_embedding_B.{_NAME}"]
        yield f"{owner}.weight", Product(lora_a.T, lora_b.T, scale, True, True)
    else:
        lora_a, lora_b = inside[f"lora_A.{_NAME}.weight"], inside[f"lora_B.{_NAME}.weight"]
        if layer.fan_in_fan_out:
            yield f"{owner}.weight", Product(lora_a.T, lora_b.T, scale, False, True)
        else:
            yield f"{owner}.weight", Product(lora_b, lora_a, scale)


def _saved_modules(peft_model: Any) -> Iterator[tuple[str, str, Any]]:
    """Parameters of modules_to_save: name in the merged model, key in the peft model, itself."""
    from peft.utils import ModulesToSaveWrapper

    for path, module in peft_model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and _NAME in module.modules_to_save:
            saved = module.modules_to_save[_NAME].named_parameters(remove_duplicate=False)
            for name, parameter in saved:
                key = f"{path}.modules_to_save.{_NAME}.{name}"
                yield f"{path.removeprefix(_PREFIX)}.{name}", key, parameter
