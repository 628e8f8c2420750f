"""Merge methods of other packages: one decorated function gives name, parameters and maths.

::

    @merge_method("my_mean")
    def my_mean(
        task_vectors: Tensor, weights: Tensor, *, density: Annotated[float, Range(0, 1)] = 1.0
    ) -> Tensor:
        \"\"\"Mean of the task vectors' largest entries.\"\"\"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field, create_model, field_validator

from safemerge import plugins
from safemerge.config.coefficient import Coefficient, Number, layerwise_fields
from safemerge.config.method_row import MethodRow, Source, summary_of
from safemerge.config.method_spec import LAMBDA, WEIGHTS, MethodSpec
from safemerge.config.signature import check_name, keyword_fields, positional_parameters
from safemerge.errors import ConfigError

_TENSORS = ("base", "task_vectors", "models", "weights")


class AddedMethod(MethodSpec):
    """A merge method of another package; each has a model of its own, made by `merge_method`."""

    parameters: ClassVar[tuple[str, ...]] = ()
    """Keyword parameters of the function."""

    name: str
    weights: Annotated[dict[str, Coefficient], WEIGHTS] = Field(min_length=1)
    """Weight by model name; models left out get 0."""
    plugin: str | None = Field(default=None, validate_default=True)
    """Written by safemerge: the package and version that the method comes from."""

    @field_validator("plugin")
    @classmethod
    def _same_version(cls, recorded: str | None) -> str:
        name = str(get_args(cls.model_fields["name"].annotation)[0])
        found = plugins.find(plugins.MERGE_METHODS, name)
        try:
            return plugins.checked_stamp(found.stamp, recorded, where=f"method '{name}'")
        except ConfigError as error:
            raise ValueError(error.message) from error

    def coefficients(self) -> Iterator[tuple[str, Number]]:
        """Yield (dotted field, coefficient) for every layer-wise coefficient."""
        yield from ((f"weights.{name}", item) for name, item in self.weights.items())
        if hasattr(self, "lambda_"):
            yield "lambda", self.lambda_
        for field in sorted(layerwise_fields(type(self)) & set(self.parameters)):
            yield field, getattr(self, field)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes by name: each imports the method from its own package."""
        return _restored, (json.dumps(self.resolved()),)


class MergeMethod(NamedTuple):
    """What `merge_method` makes of a function; calling it calls the function."""

    name: str
    function: Callable[..., Any]
    """Takes float32 tensors and gives one of the base's shape."""
    tensors: tuple[str, ...]
    """Its tensor parameters: some of ``base``, ``task_vectors``, ``models``, ``weights``."""
    spec: type[AddedMethod]

    def __call__(self, *tensors: Any, **parameters: Any) -> Any:
        """Call the function."""
        return self.function(*tensors, **parameters)

    @property
    def uses_base(self) -> bool:
        """Whether it merges task vectors; else it merges whole weights."""
        return "task_vectors" in self.tensors

    @property
    def row(self) -> MethodRow:
        """Its row in the table of methods."""
        spec = self.spec
        summary = summary_of(spec)
        return MethodRow("method", self.name, spec, spec.source, summary, self.uses_base)


def merge_method(
    name: str, *, title: str = "", citation: str = "", url: str = ""
) -> Callable[[Callable[..., Any]], MergeMethod]:
    r"""Make a merge method of a pure function on one named tensor.

    The function's tensor parameters say what it is given, in float32 and in this order of
    models, sorted by name, those of weight zero left out:

    - ``task_vectors``, shape (experts, \*shape): it returns the merged task vector, and the
      result is base + lambda times that; or ``models``, (models, \*shape): it returns the merged
      weights, and the base may be one of the models;
    - ``weights``, shape (experts,); ``base``, of the tensor's shape, if it needs them.

    Keyword-only parameters become keys in files: a ``float``, layer-wise, or an ``int``, with
    allowed values as ``Annotated[float, Range(0, 1)]``; a ``bool``; a ``Literal``. Their
    descriptions are taken from the docstring's ``Args``, the summary from its first line.

    Args:
        name: What files call it: lower-case letters, digits and underscores.
        title: Name for people.
        citation: Whose method it is.
        url: Where it is described.

    Returns:
        A decorator, whose result is what the entry point in the group
        ``safemerge.merge_methods`` must name.

    Raises:
        ConfigError: If the name or the signature is not of this form.
    """

    def declare(function: Callable[..., Any]) -> MergeMethod:
        where = f"merge method '{name}'"
        check_name(name, where=where)
        tensors = positional_parameters(function)
        unknown = [item for item in tensors if item not in _TENSORS]
        if unknown or len({"task_vectors", "models"} & set(tensors)) != 1:
            raise ConfigError(
                f"{where}: tensor parameters must be task_vectors or models, and may be base and "
                f"weights; got {', '.join(tensors) or 'none'}. Make others keyword-only."
            )
        parameters = keyword_fields(
            function,
            where=where,
            reserved=(*AddedMethod.model_fields, "lambda_", "models"),
            layerwise=True,
        )
        source = Source(title or name, citation or function.__module__, url, "")
        return MergeMethod(name, function, tensors, _declared(name, function, parameters, source))

    return declare


def _declared(
    name: str, function: Callable[..., Any], parameters: Mapping[str, Any], source: Source
) -> type[AddedMethod]:
    tensors = positional_parameters(function)
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    if "task_vectors" in tensors:
        scale = Field(default=1.0, alias="lambda", description="Scale of the merged task vector.")
        fields["lambda_"] = (Annotated[Coefficient, LAMBDA], scale)
    model: type[AddedMethod] = create_model(
        f"Added_{name}",
        __base__=AddedMethod,
        __module__=__name__,
        __doc__=function.__doc__ or f"{name}, of {function.__module__}.",
        **fields,
        **parameters,
    )
    model.source, model.parameters = source, tuple(parameters)
    model.takes_base = "models" in tensors
    return model


def _restored(document: str) -> AddedMethod:
    name = json.loads(document)["name"]
    method: MergeMethod = load_method(name)
    return method.spec.model_validate_json(document)


def load_method(name: str, *, builtin: Any = ()) -> MergeMethod:
    """Import a merge method of another package.

    Raises:
        ConfigError: If there is none of that name, it cannot be imported, or the entry point
            names something else than what `merge_method` made.
    """
    found = plugins.load(plugins.MERGE_METHODS, name, builtin=builtin)
    if not isinstance(found, MergeMethod) or found.name != name:
        got = found.name if isinstance(found, MergeMethod) else type(found).__name__
        raise ConfigError(
            f"merge method '{name}': its entry point must name a function decorated with "
            f"@merge_method({name!r}); got {got!r}."
        )
    return found
