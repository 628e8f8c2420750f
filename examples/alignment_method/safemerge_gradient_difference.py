"""An alignment method of its own: gradient difference, from the unlearning literature."""

from typing import Annotated

from safemerge.extension import AlignmentStep, Gradient, Range, alignment_method


@alignment_method(
    "gradient_difference",
    harmful=True,
    title="Gradient difference",
    citation="Liu et al., Continual Learning and Private Unlearning, 2022",
    url="https://arxiv.org/abs/2203.12817",
)
def gradient_difference(
    step: AlignmentStep, *, strength: Annotated[float, Range(0.0, 1.0)] = 0.1
) -> Gradient:
    """Descend the alignment loss and ascend the harmful one.

    Args:
        step: The step.
        strength: Weight of the ascent; the harmful loss has no upper bound, so small values last.
    """
    alignment = step.gradient(step.alignment)
    return alignment.plus(step.gradient(step.harmful), scale=-strength)
