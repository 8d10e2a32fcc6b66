"""Forward passes with perturbed weights that never touch the weights.

Inside one of these modes a model runs unmodified, but every functional call that receives one of the
given parameters is answered as if the parameter were theta + s u, with u made just in time: at most one
layer's noise exists at a time, and there is nothing to restore afterwards.

``Substituted`` evaluates one member (one direction, one sign) through any operation. ``Batched``
evaluates many members at once: they ride on the batch dimension, and the few operations through which
the common causal language models use their parameters know how to treat each member's share
(zo/members.py).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from zo.members import Fill, Members
from zo.scratch import Scratch

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
    """Shared by both modes: which tensors are parameters, and which calls use one of them."""

    def __init__(self, parameters: Sequence[torch.Tensor]):
        super().__init__()
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}

    def _uses_parameter(self, args, kwargs) -> bool:
        return any(id(value) in self._index for value in _flatten((*args, *kwargs.values())))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._uses_parameter(args, kwargs) or function in _METADATA:
            return function(*args, **kwargs)
        return self._answer(function, args, kwargs)


class Substituted(_Perturbed):
    """One member: each parameter theta is replaced by theta + scale * u_query, whatever the operation."""

    def __init__(
        self, parameters: Sequence[torch.Tensor], fill: Fill, scratch: Scratch, query: int, scale: float
    ):
        super().__init__(parameters)
        self._fill, self._scratch, self._query, self._scale = fill, scratch, query, scale

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


def _flatten(values) -> list:
    """The values, and those inside lists and tuples among them."""
    return [item for v in values for item in (v if isinstance(v, list | tuple) else (v,))]


class Batched(_Perturbed):
    """Many members on the batch dimension: activations are [M * b, ...], members outermost.

    ``batch_size`` is b, each member's sequences. Raises UnsupportedOperation where a parameter is used in a
    way that cannot be split by member.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], members: Members, batch_size: int):
        super().__init__(parameters)
        self.members, self.batch_size = members, batch_size

    def _answer(self, function, args, kwargs):
        handler = _HANDLERS.get(function)
        if handler is None:
            raise UnsupportedOperation(function)
        return handler(self, *args, **kwargs)

    def index(self, parameter: torch.Tensor | None) -> int | None:
        """The parameter's place; None for what is not perturbed."""
        return self._index.get(id(parameter))

    def rows(self, activations: torch.Tensor) -> torch.Tensor:
        """[M * n, ..., d] -> [M, rows of each, d]."""
        return activations.reshape(self.members.count, -1, activations.shape[-1])

    def vector(self, parameter: torch.Tensor | None) -> torch.Tensor | None:
        """[M, 1, d]: a vector as each member sees it; as it is where it is not perturbed."""
        index = self.index(parameter)
        return parameter if index is None else self.members.vector(parameter, index)[:, None]

    def multiply(self, x: torch.Tensor, weight, bias, out_first: bool) -> torch.Tensor:
        """Multiply x by each member's weight and add its bias, in x's leading shape."""
        out = self.members.multiply(
            self.rows(x), weight, self.index(weight), bias, self.index(bias), out_first
        )
        return out.view(*x.shape[:-1], -1)


def _embedding(mode: Batched, ids, weight, padding_idx=None, max_norm=None, *args, **kwargs):
    if max_norm is not None:  # renormalises the table in place
        raise UnsupportedOperation(F.embedding)
    members = mode.members.count
    shared = ids.shape[0] == 1  # position ids of one row serve every member and every sequence
    each = ids.expand(members, *ids.shape[1:]) if shared else ids
    out = mode.members.look_up(each.reshape(members, -1), weight, mode.index(weight)).view(*each.shape, -1)
    return out.repeat_interleave(mode.batch_size, dim=0) if shared else out


def _linear(mode: Batched, x, weight, bias=None):
    return mode.multiply(x, weight, bias, out_first=True)


def _addmm(mode: Batched, bias, x, weight, *, beta=1, alpha=1):
    if beta != 1 or alpha != 1:
        raise UnsupportedOperation(torch.addmm)
    return mode.multiply(x, weight, bias, out_first=False)


def _layer_norm(mode: Batched, x, shape, weight=None, bias=None, eps=1e-5):
    out = mode.rows(F.layer_norm(x, shape, eps=eps))
    weight, bias = mode.vector(weight), mode.vector(bias)
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias).view(x.shape)


def _mul(mode: Batched, left, right):
    vector, x = (left, right) if mode.index(left) is not None else (right, left)
    if mode.index(x) is not None or vector.ndim != 1:
        raise UnsupportedOperation(torch.mul)
    return (mode.rows(x) * mode.vector(vector)).view(x.shape)


_HANDLERS = {
    F.embedding: _embedding,
    F.linear: _linear,
    torch.addmm: _addmm,
    F.layer_norm: _layer_norm,
    torch.Tensor.mul: _mul,
    torch.mul: _mul,
}
