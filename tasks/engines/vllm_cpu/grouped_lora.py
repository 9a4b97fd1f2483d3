"""LoRA in a vLLM server on a CPU: one matrix product for each adapter of a batch, and none for rows of the base model.

On a CPU, vLLM 0.32 has a fallback (`vllm.lora.ops.torch_ops.lora_ops`) with two faults:

- It gathers `weights[indices]`, which copies the (out, in) matrix of an adapter for every row (token) of a batch. That
  takes most of the time of a server with adapters.
- A row of the base model has the index -1, which gathers the last adapter. In a batch with rows of adapters, such a row
  is therefore answered as if it had the last adapter.

Here all rows of an adapter are multiplied at once, (rows, in) @ (in, out), wherever they stand in the batch.

The server runs in an environment without our packages, so this file imports none of them: its folder is on the server's
import path, and `--worker-extension-cls grouped_lora.GroupedLora` loads it. If vLLM's functions are not the ones that
it knows, it leaves them in place and logs a warning. The folder can be removed when vLLM does this itself.

Not covered: GPUs, where vLLM has kernels of its own.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("vllm.grouped_lora")  # below vLLM's own, so that it reaches the server's log

Rows = Any  # a slice, or a tensor of row numbers


class GroupedLora:
    """An empty base class for vLLM's worker: naming it makes vLLM import this module, which does the work."""


# --- vLLM's functions for single rows, with vLLM's names of parameters. Its functions for runs of rows call them. ---


def bgmv_shrink(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, scaling: float = 1.0
) -> None:
    """Inputs times A. An adapter whose rank is lower than the output's fills the first columns."""
    for rows, product in _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor):
        output_tensor[rows, : product.shape[1]] = scaling * product


def bgmv_expand(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, add_inputs: bool = True
) -> None:
    """Inputs times B. Model and adapter may be padded to different widths."""
    n_columns = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    for rows, product in _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor):
        _put(output_tensor[:, :n_columns], rows, product[:, :n_columns], add_inputs)


def bgmv_expand_slice(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor,
    slice_offset: int, slice_size: int, add_inputs: bool = True,
) -> None:  # fmt: skip
    """Inputs times B, for one of several projections that share an output (query, key and value)."""
    for rows, product in _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor):
        _put(output_tensor[:, slice_offset : slice_offset + slice_size], rows, product, add_inputs)


def _products(inputs: Tensor, weights: Tensor, indices: Tensor, output: Tensor) -> Iterator[tuple[Rows, Tensor]]:
    """For each adapter of a batch, its rows and the product (rows, out) of their inputs and its matrix.

    Args:
        weights: (slots, out, in) or (slots, 1, out, in).
        indices: The slot of each row; -1 for a row without an adapter.
        output: Decides the type of the products.
    """
    if weights.dim() == 4:
        weights = weights.squeeze(1)
    slots = indices.unique().tolist()
    for slot in slots:
        if slot >= 0:
            # Most batches have one adapter, and then nothing is copied.
            rows = slice(None) if len(slots) == 1 else (indices == slot).nonzero()[:, 0]
            yield rows, inputs[rows].to(output.dtype) @ weights[slot].to(output.dtype).T


def _put(output: Tensor, rows: Rows, product: Tensor, add: bool) -> None:
    if add:
        output[rows] += product
    else:
        output[rows] = product


# --- into vLLM ---

_OURS = (bgmv_shrink, bgmv_expand, bgmv_expand_slice)


def install() -> None:
    """Replace vLLM's functions by the ones above, if vLLM's are the ones that these were written for."""
    try:
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu
    except ImportError as error:
        logger.warning("LoRA stays as this vLLM does it, which may be slow on a CPU (%s)", error)
        return
    if differences := [what for ours in _OURS for what in _differences(ours, lora_ops, punica_cpu)]:
        logger.warning("LoRA stays as this vLLM does it, which may be slow on a CPU (%s)", "; ".join(differences))
        return
    for ours in _OURS:
        function = _where_rows_match(ours, getattr(lora_ops, ours.__name__))
        for module in (lora_ops, punica_cpu):
            setattr(module, ours.__name__, function)
    logger.info("LoRA: one product for each adapter of a batch")


def _differences(ours: Callable[..., None], lora_ops: ModuleType, punica_cpu: ModuleType) -> list[str]:
    """How vLLM's functions differ from those that this was written for; empty if they do not."""
    name = ours.__name__
    runs = name.replace("bgmv", "sgmv")
    theirs, for_runs = getattr(lora_ops, name, None), getattr(lora_ops, runs, None)
    found = []
    if _parameters(theirs) != _parameters(ours):
        found.append(f"{name} takes other parameters")
    if not isinstance(for_runs, FunctionType) or name not in for_runs.__code__.co_names:
        found.append(f"{runs} does not call {name}")
    if getattr(punica_cpu, name, None) is not theirs or getattr(punica_cpu, runs, None) is not for_runs:
        found.append(f"{name} is not what the CPU uses")
    return found


def _parameters(function: object) -> list[tuple[str, object]] | None:
    """Names and defaults of the parameters in order; None if it is not a plain function."""
    if not isinstance(function, FunctionType):
        return None
    return [(parameter.name, parameter.default) for parameter in inspect.signature(function).parameters.values()]


def _where_rows_match(ours: Callable[..., None], theirs: Callable[..., None]) -> Callable[..., None]:
    """Ours if each row has an input, an index and an output; otherwise vLLM's, which broadcasts or cuts."""

    @functools.wraps(ours)
    def run(
        inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, *rest: Any,
        **named: Any,
    ) -> None:  # fmt: skip  # Any: as the two take them
        match = inputs.shape[0] == lora_indices_tensor.shape[0] == output_tensor.shape[0]
        (ours if match else theirs)(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *rest, **named)

    return run


install()
