"""Layers that carry a state along a sequence (Gated DeltaNet, Mamba-2, short convolutions).

The transformers module of such a layer (a mixer) runs as it is, with faster functions for its scan
(rlm.models.scans), but never over the flat row, where a state would leak from one sequence into the
next: the layout cuts the row into its sequences and gives each its own state
(rlm.learner.packed_groups, rlm.engine.kv_cache). A mixer takes its state from a cache; `State`
stands for transformers' cache of one layer.

It does not know kinds of layers: a mixer is a module with a convolution that takes a cache.
"""

import inspect
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from rlm.models import scans

HOLDER = "_rlm_states"


class State:
    """The state of rows in one layer: what it convolves over, and what it recurs on.

    conv, recurrent: tensors [rows, ...] by a number, as a layer may have several. In place, they
    are written where they lie (the engine); else each update makes new ones (the learner).
    """

    record_past = False

    def __init__(self, conv: dict | None = None, recurrent: dict | None = None, *, in_place=False):
        self.conv_states: dict[int, torch.Tensor] = conv or {}
        self.recurrent_states: dict[int, torch.Tensor] = recurrent or {}
        self.in_place = in_place
        self._begun = bool(self.conv_states)

    @property
    def layers(self) -> "State":
        return self

    def __getitem__(self, layer: int) -> "State":
        return self

    def tensors(self) -> Iterable[tuple[dict[int, torch.Tensor], int, torch.Tensor]]:
        """Yield (where it stands, its number, tensor) of each."""
        for store in (self.conv_states, self.recurrent_states):
            for number, tensor in store.items():
                yield store, number, tensor

    def select(self, rows: torch.Tensor) -> "State":
        """Return the state of these rows; gradients go through."""
        conv, recurrent = (
            {number: tensor.index_select(0, rows) for number, tensor in store.items()}
            for store in (self.conv_states, self.recurrent_states)
        )
        return State(conv, recurrent)

    # What a mixer asks of a cache.

    def has_previous_state(self, layer=None, state_idx=None) -> bool:
        return self._begun

    def update_conv_state(self, new, layer=None, state_idx=0, conv_kernel_size=None, **kwargs):
        """Return the convolution's input with what was before it; keep its last part."""
        before = self.conv_states.get(state_idx) if self._begun else None
        whole = new if before is None else torch.cat([before, new], dim=-1)
        width = conv_kernel_size or new.shape[-1]
        if whole.shape[-1] < width:
            whole = nn.functional.pad(whole, (width - whole.shape[-1], 0))
        self._keep(self.conv_states, state_idx, whole[..., whole.shape[-1] - width :])
        return whole

    def update_recurrent_state(self, new, layer=None, state_idx=0, layer_idx=None, **kwargs):
        self._keep(self.recurrent_states, state_idx, new)
        return new

    def end(self) -> None:
        """What is asked of it from now on is asked behind a sequence."""
        self._begun = True

    def _keep(self, store: dict, number: int, new: torch.Tensor) -> None:
        if self.in_place and number in store:
            store[number].copy_(new)
        else:
            store[number] = new


def joined(states: list[State]) -> State:
    """Return the state of all rows of several, in order."""

    def all_of(name: str) -> dict[int, torch.Tensor]:
        stores = [getattr(state, name) for state in states]
        return {number: torch.cat([store[number] for store in stores]) for number in stores[0]}

    return State(all_of("conv_states"), all_of("recurrent_states"))


class Holder:
    """Which layout a forward runs under: mixers are not given the forward's keyword arguments."""

    layout: Any = None


def cache_name(module: nn.Module) -> str:
    """Return under which name a mixer takes its cache, "" if the module is none."""
    if not any(isinstance(child, nn.Conv1d) for child in module.children()):
        return ""
    names = inspect.signature(type(module).forward).parameters
    found = [name for name in ("cache_params", "past_key_values") if name in names]
    return found[0] if found and hasattr(module, "layer_idx") else ""


def mixers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that carry a state."""
    return [module for module in model.modules() if cache_name(module)]


def install(module: nn.Module, holder: Holder) -> None:
    """Let a mixer run under the holder's layout; `module.forward` is replaced."""
    name, forward = cache_name(module), partial(scans.forward_of(module), module)

    def run(hidden: torch.Tensor, state: State) -> torch.Tensor:
        """Return the mixer's output [rows, T, H] and leave the state behind it in `state`."""
        out = forward(hidden, **{name: state, "attention_mask": None})
        state.end()
        return out[0] if isinstance(out, tuple) else out

    def under_layout(hidden_states, *args, **kwargs):
        assert holder.layout is not None
        return holder.layout.mix(module.layer_idx, run, hidden_states[0])[None]

    module.__dict__["forward"] = under_layout


def holder_of(model: nn.Module) -> Holder:
    """Return the holder of a model, made when it is first asked for."""
    return model.__dict__.setdefault(HOLDER, Holder())


@contextmanager
def flushed():
    """Inside the block what a CPU computes below 1e-38 is zero, in this thread.

    What has decayed over many tokens is so small, and for each such number a CPU takes a hundred
    times as long.
    """
    before = not (torch.tensor(2e-38, device="cpu") / 16).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def use(model: nn.Module):
    """Inside the block the model's mixers run under the layout of the model's holder.

    There is one holder to a model, so that a backward that runs a forward again finds its layout.
    """
    found = [module for module in mixers(model) if "forward" not in module.__dict__]
    holder = holder_of(model)
    try:
        for module in found:
            install(module, holder)
        with flushed() if found else nullcontext():
            yield
    finally:
        for module in found:
            module.__dict__.pop("forward", None)
