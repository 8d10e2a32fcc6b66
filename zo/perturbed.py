"""Forward passes with perturbed weights that never touch the weights.

Inside one of these modes a model runs unmodified, but every functional call that receives one of the
given parameters is answered as if the parameter were theta + s u, with u made just in time: at most one
layer's noise exists at a time, and there is nothing to restore afterwards.

``Substituted`` evaluates one member (one direction, one sign) through any operation. ``Batched``
evaluates many members at once: they ride on the batch dimension, and the few operations through which
the common causal language models use their parameters know how to treat each member's share.
"""

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
    """Shared by both modes: which tensors are parameters, and one reusable scratch tensor for their noise."""

    def __init__(self, parameters: Sequence[torch.Tensor], fill: Fill, scratch: "Scratch"):
        super().__init__()
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._fill = fill
        self._scratch = scratch

    def _uses_parameter(self, args, kwargs) -> bool:
        return any(id(value) in self._index for value in _flatten((*args, *kwargs.values())))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._uses_parameter(args, kwargs) or function in _METADATA:
            return function(*args, **kwargs)
        return self._answer(function, args, kwargs)


class Substituted(_Perturbed):
    """One member: each parameter theta is replaced by theta + scale * u_query, whatever the operation."""

    def __init__(self, parameters, fill, scratch, query: int, scale: float):
        super().__init__(parameters, fill, scratch)
        self._query, self._scale = query, scale

    def _answer(self, function, args, kwargs):
        scratch = self._scratch if function in _CONSUMING else Scratch()
        found = [value for value in _flatten((*args, *kwargs.values())) if id(value) in self._index]
        perturbed = {
            id(p): self._perturb(p, part) for p, part in zip(found, scratch.take(*found), strict=True)
        }

        def replace(value):
            if isinstance(value, list | tuple):
                return type(value)(replace(item) for item in value)
            return perturbed.get(id(value), value)

        return function(*map(replace, args), **{name: replace(value) for name, value in kwargs.items()})

    def _perturb(self, parameter: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Make parameter + scale * u in the noise's precision and in its place."""
        self._fill(noise, self._query, self._index[id(parameter)])
        return torch.add(parameter, noise, alpha=self._scale, out=noise).to(parameter.dtype)


class Batched(_Perturbed):
    """Many members on the batch dimension: activations are [members * B, ...], members outermost.

    ``members`` lists (query, scale) pairs; both signs of a query should stand side by side, so that
    their noise is made once. Raises UnsupportedOperation where a parameter is used in another way.
    """

    def __init__(self, parameters, fill, scratch, members: Sequence[tuple[int, float]], batch_size: int):
        super().__init__(parameters, fill, scratch)
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
        noise, perturbed = self._scratch.take(parameter, parameter)
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


class Scratch:
    """A flat tensor, made at its full size when first used and then reused.

    ``parameters`` and ``copies`` say that size: so many times the largest, and the largest vector beside it
    (a weight and its bias are perturbed together). Growing step by step would hold old and new at once.
    """

    def __init__(self, parameters: Sequence[torch.Tensor] = (), copies: int = 1):
        vector = max((parameter.numel() for parameter in parameters if parameter.ndim < 2), default=0)
        largest = max((parameter.numel() for parameter in parameters), default=0)
        self._capacity = copies * largest + vector
        self._flat: torch.Tensor | None = None

    def take(self, *likes: torch.Tensor) -> list[torch.Tensor]:
        """A part for each of ``likes``, of its shape, at least fp32; all valid until the next call."""
        if not likes:
            return []
        dtype = torch.promote_types(likes[0].dtype, torch.float32)
        sizes = [like.numel() for like in likes]
        flat = self._flat
        if flat is None or flat.numel() < sum(sizes) or flat.dtype != dtype or flat.device != likes[0].device:
            size = max(self._capacity, sum(sizes))
            self._flat = flat = torch.empty(size, dtype=dtype, device=likes[0].device)
        parts = flat[: sum(sizes)].split(sizes)
        return [part.view(like.shape) for part, like in zip(parts, likes, strict=True)]


def _flatten(values) -> list:
    """The values, and those inside lists and tuples among them."""
    return [item for v in values for item in (v if isinstance(v, list | tuple) else (v,))]


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
