"""What a stage must keep to resume after a step: weights, optimiser, method, number of steps."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from safemerge.errors import TrainingError
from safemerge.training.full import ShardedModel
from safemerge.training.method import Method

_FILE = "state.pt"
_SHARDS = "shards"


def save_state(
    folder: Path, *, model: Any, optimizer: torch.optim.Optimizer, method: Method, step: int
) -> None:
    """Write the state after a step.

    Sharded weights are written by every rank, each its own shards into its own `folder`; the
    folders' files together are the checkpoint, which any number of ranks can load.

    Args:
        folder: An existing folder.
        model: The model; all ranks call this if it is sharded, else the first.
        optimizer: Over its trainable parameters.
        method: The stage's step.
        step: Steps done.
    """
    state: dict[str, Any] = {"step": step, "method": method.state_dict()}
    if isinstance(model, ShardedModel):
        weights, moments = get_state_dict(model, optimizer)
        sharded: dict[str, Any] = {"weights": weights, "optimizer": moments}
        (folder / _SHARDS).mkdir(exist_ok=True)
        save(sharded, checkpoint_id=folder / _SHARDS)
        if torch.distributed.get_rank() > 0:
            return
    else:
        named = model.named_parameters()
        state["weights"] = {name: p.detach() for name, p in named if p.requires_grad}
        state["optimizer"] = optimizer.state_dict()
    torch.save(state, folder / _FILE)


def load_state(
    folder: Path, *, model: Any, optimizer: torch.optim.Optimizer, method: Method
) -> int:
    """Take a state that `save_state` wrote, the folders of all ranks joined.

    Returns:
        Steps done.

    Raises:
        TrainingError: If it is another version's, or damaged, and does not fit.
    """
    try:
        return _load(folder, model=model, optimizer=optimizer, method=method)
    except torch.OutOfMemoryError:
        raise
    except (KeyError, ValueError, TypeError, EOFError, RuntimeError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{folder}: must be a checkpoint that this version of safemerge wrote; got one that "
            f"does not fit ({type(error).__name__}: {reason}). Remove the stage's folder, and it "
            "is trained from its start."
        ) from error


def _load(folder: Path, *, model: Any, optimizer: torch.optim.Optimizer, method: Method) -> int:
    state = torch.load(folder / _FILE, weights_only=True)
    if isinstance(model, ShardedModel):
        weights, moments = get_state_dict(model, optimizer)
        sharded: dict[str, Any] = {"weights": weights, "optimizer": moments}
        load(sharded, checkpoint_id=folder / _SHARDS)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=sharded["weights"],
            optim_state_dict=sharded["optimizer"],
        )
    else:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
    method.load_state_dict(state["method"])
    return int(state["step"])
