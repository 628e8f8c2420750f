"""Lisa: fine-tuning that alternates between alignment and user data, held by a proximal term.

References:
    Huang et al., "Lisa: Lazy Safety Alignment for Large Language Models against Harmful
    Fine-tuning", arXiv:2405.18641, algorithm 1: in each state the loss gains
    rho / 2 |w - w_other|^2, where w_other are the weights at which the other state ended. As in
    the authors' code, training begins in the alignment state, and the term begins after a share
    of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from safemerge.config.training import LisaSpec

State = Literal["alignment", "user"]


def lisa_state(spec: LisaSpec, step: int) -> State:
    """Return whose data a step (0-indexed) takes."""
    inside = step % (spec.alignment_steps + spec.user_steps)
    return "alignment" if inside < spec.alignment_steps else "user"


class Proximal:
    """Where each state ended, and the pull towards the other one's end.

    Args:
        parameters: Trainable tensors; both anchors are their values now.
        spec: Lengths of the states, strength.
        steps: Steps of the whole stage.
    """

    def __init__(self, parameters: Sequence[Tensor], spec: LisaSpec, *, steps: int) -> None:
        self._parameters = list(parameters)
        self._spec = spec
        self._begin = spec.warmup * steps
        self._anchors: dict[str, list[Tensor]] = {
            state: [parameter.detach().clone() for parameter in parameters]
            for state in ("alignment", "user")
        }

    def enter(self, step: int) -> State:
        """Begin a step: where the state changes, the weights are the last state's end."""
        state = lisa_state(self._spec, step)
        if step and (before := lisa_state(self._spec, step - 1)) != state:
            for anchor, parameter in zip(self._anchors[before], self._parameters, strict=True):
                anchor.copy_(parameter.detach())
        return state

    def pull(self, step: int) -> Tensor | None:
        """Add the term's gradient to the parameters' ``grad``; return the term, if it is on."""
        if step < self._begin or not self._spec.rho:
            return None
        other = "user" if lisa_state(self._spec, step) == "alignment" else "alignment"
        with torch.no_grad():
            away = torch._foreach_sub(self._parameters, self._anchors[other])
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            assert len(gradients) == len(away), "every trainable tensor has a gradient"
            torch._foreach_add_(gradients, away, alpha=self._spec.rho)
            squares = torch.stack([difference.square().sum() for difference in away])
        return self._spec.rho / 2 * squares.sum()

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return both anchors."""
        return dict(self._anchors)

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take anchors that `state_dict` returned."""
        for name, anchors in self._anchors.items():
            for anchor, value in zip(anchors, state[name], strict=True):
                anchor.copy_(value)
