"""Forward passes with perturbed weights that never touch the weights.

Inside one of these modes a model runs unmodified, but every functional call that receives one of the
given parameters is answered as if the parameter were theta + s u, with u made just in time: at most one
layer's noise exists at a time, and there is nothing to restore afterwards.

``Substituted`` evaluates one member (one direction, one sign) through any operation. ``Batched``
evaluates many members at once: they ride on the batch dimension, and the few operations through which
the common causal language models use their parameters know how to treat each member's share.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Fill = Callable[[torch.Tensor, int, int], torch.Tensor]
"""fill(out, query, parameter): write one direction's part at one parameter into ``out``."""

# What asks about a parameter without reading its values. Anything else sees the perturbed ones.
_METADATA = {
    torch.Tensor.shape.__get__,
    torch.Tensor.dtype.__get__,
    torch.Tensor.device.__get__,
    torch.Tensor.layout.__get__,
    torch.Tensor.ndim.__get__,
    torch.Tensor.requires_grad.__get__,
    torch.Tensor.is_leaf.__get__,
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.stride,
    torch.Tensor.is_contiguous,
    torch.Tensor.is_floating_point,
    torch.is_floating_point,
}

# Operations whose result never shares memory with their arguments: these may read the perturbed
# parameter from a buffer that the next call overwrites.
_CONSUMING = {F.embedding, F.linear, F.layer_norm, F.rms_norm, torch.addmm, torch.mul, torch.Tensor.mul}


class UnsupportedOperation(Exception):
    """A perturbed parameter reached an operation that cannot treat members apart."""

    def __init__(self, operation: Callable):
        self.operation = getattr(operation, "__name__", str(operation))
        super().__init__(self.operation)


class _Perturbed(TorchFunctionMode):
    """Shared by both modes: which tensors are parameters, and one reusable buffer for their noise."""

    def __init__(self, parameters: Sequence[torch.Tensor], fill: Fill, buffer: "NoiseBuffer"):
        super().__init__()
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._fill = fill
        self._buffer = buffer

    def _uses_parameter(self, args, kwargs) -> bool:
        index = self._index
        for value in (*args, *kwargs.values()):
            if id(value) in index:
                return True
            if isinstance(value, list | tuple) and any(id(item) in index for item in value):
                return True
        return False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._uses_parameter(args, kwargs) or function in _METADATA:
            return function(*args, **kwargs)
        return self._answer(function, args, kwargs)


class Substituted(_Perturbed):
    """One member: each parameter theta is replaced by theta + scale * u_query, whatever the operation."""

    def __init__(self, parameters, fill, buffer, query: int, scale: float):
        super().__init__(parameters, fill, buffer)
        self._query, self._scale = query, scale

    def _answer(self, function, args, kwargs):
        buffer = self._buffer if function in _CONSUMING else NoiseBuffer()
        slots = itertools.count()

        def perturb(value):
            if isinstance(value, list | tuple):
                return type(value)(perturb(item) for item in value)
            if id(value) not in self._index:
                return value
            noise = self._fill(buffer.take(value, next(slots)), self._query, self._index[id(value)])
            return add_scaled(value, noise, self._scale)

        return function(*map(perturb, args), **{name: perturb(value) for name, value in kwargs.items()})


class Batched(_Perturbed):
    """Many members on the batch dimension: activations are [members * B, ...], members outermost.

    ``members`` lists (query, scale) pairs; both signs of a query should stand side by side, so that
    their noise is made once. Raises UnsupportedOperation where a parameter is used in another way.
    """

    def __init__(self, parameters, fill, buffer, members: Sequence[tuple[int, float]], batch_size: int):
        super().__init__(parameters, fill, buffer)
        self._members, self._batch_size = members, batch_size

    def _answer(self, function, args, kwargs):
        handler = _HANDLERS.get(function)
        if handler is None:
            raise UnsupportedOperation(function)
        return handler(self, *args, **kwargs)

    def each(self, parameter: torch.Tensor | None):
        """Yield the parameter as each member sees it; the tensor is overwritten by the next one."""
        index = self._index.get(id(parameter))
        if index is None:
            for _ in self._members:
                yield parameter
            return
        noise, perturbed = self._buffer.take(parameter, slot=0), self._buffer.take(parameter, slot=1)
        last_query = None
        for query, scale in self._members:
            if query != last_query:
                self._fill(noise, query, index)
                last_query = query
            torch.add(parameter, noise, alpha=scale, out=perturbed)
            yield perturbed.to(parameter.dtype)

    def stack(self, vector: torch.Tensor | None, ndim: int) -> torch.Tensor | None:
        """[members, 1, ..., d]: a vector parameter as each member sees it, to broadcast over ndim axes."""
        if vector is None or id(vector) not in self._index:
            return vector
        stacked = torch.stack([member.clone() for member in self.each(vector)])
        return stacked.view(len(self._members), *(1,) * (ndim - 2), -1)

    def split(self, activations: torch.Tensor) -> torch.Tensor:
        """[members * n, ...] -> [members, n, ...]."""
        return activations.reshape(len(self._members), -1, *activations.shape[1:])


class NoiseBuffer:
    """Flat scratch tensors, one a slot, that grow to the largest layer once and are then reused."""

    def __init__(self):
        self._slots: dict[int, torch.Tensor] = {}

    def take(self, like: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Scratch of ``like``'s shape, at least fp32; valid until the slot's next use."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        flat = self._slots.get(slot)
        if flat is None or flat.numel() < like.numel() or flat.dtype != dtype or flat.device != like.device:
            flat = self._slots[slot] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return flat[: like.numel()].view(like.shape)


def add_scaled(parameter: torch.Tensor, noise: torch.Tensor, scale: float) -> torch.Tensor:
    """Parameter + scale * noise, computed in the noise's precision and in its place."""
    return torch.add(parameter, noise, alpha=scale, out=noise).to(parameter.dtype)


def _embedding(mode: Batched, ids, weight, *args, **kwargs):
    shared = ids.shape[0] == 1  # position ids of one row serve every member and every sequence
    rows = ids.expand(len(mode._members), *ids.shape[1:]) if shared else ids
    parts = [
        F.embedding(r, w, *args, **kwargs) for r, w in zip(mode.split(rows), mode.each(weight), strict=True)
    ]
    out = torch.cat(parts)
    return out.repeat_interleave(mode._batch_size, dim=0) if shared else out


def _linear(mode: Batched, x, weight, bias=None):
    bias = mode.stack(bias, 3)
    x = mode.split(x)
    parts = [F.linear(part, w) for part, w in zip(x, mode.each(weight), strict=True)]
    out = torch.stack(parts)
    if bias is not None:
        out += bias if bias.ndim == 1 else bias.view(len(parts), *(1,) * (out.ndim - 2), -1)
    return out.flatten(0, 1)


def _addmm(mode: Batched, bias, x, weight, *, beta=1, alpha=1):
    if beta != 1 or alpha != 1:
        raise UnsupportedOperation(torch.addmm)
    bias = mode.stack(bias, 3)
    out = torch.stack([part @ w for part, w in zip(mode.split(x), mode.each(weight), strict=True)])
    return (out + bias).flatten(0, 1)


def _layer_norm(mode: Batched, x, shape, weight=None, bias=None, eps=1e-5):
    out = mode.split(F.layer_norm(x, shape, eps=eps))
    weight, bias = mode.stack(weight, out.ndim), mode.stack(bias, out.ndim)
    out = out * weight if weight is not None else out
    return (out + bias if bias is not None else out).flatten(0, 1)


def _mul(mode: Batched, left, right):
    vector, x = (left, right) if id(left) in mode._index else (right, left)
    if id(x) in mode._index or vector.ndim != 1:
        raise UnsupportedOperation(torch.mul)
    x = mode.split(x)
    return (x * mode.stack(vector, x.ndim)).flatten(0, 1)


_HANDLERS = {
    F.embedding: _embedding,
    F.linear: _linear,
    torch.addmm: _addmm,
    F.layer_norm: _layer_norm,
    torch.Tensor.mul: _mul,
    torch.mul: _mul,
}
