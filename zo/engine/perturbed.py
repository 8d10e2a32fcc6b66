"""Forward passes with perturbed weights that never touch the weights.

Inside ``Perturbed`` a model runs unmodified, but every functional call that receives one of the given
parameters is answered as if the parameter were theta + s u, with u made just in time: there is nothing to
restore afterwards. Many members (directions with a sign) may share the pass: they ride on the batch
dimension, and the few operations through which the common causal language models use their parameters
know how to treat each member's share (zo/engine/members.py). A single member may go through any operation.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from zo.engine.members import Members

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


class UnsupportedOperation(Exception):
    """A perturbed parameter reached an operation that cannot treat members apart."""

    def __init__(self, operation: Callable):
        self.operation = getattr(operation, "__name__", str(operation))
        super().__init__(self.operation)


class _UnknownForm(Exception):
    """Raised by a handler: it knows the operation, but not this use of it."""


class Perturbed(TorchFunctionMode):
    """Each member's parameters in place of the given ones: activations are [M * b, ...], members outermost.

    ``batch_size`` is b, each member's sequences. Raises UnsupportedOperation where several members would use
    a parameter in a way that cannot be split among them.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], members: Members, batch_size: int):
        super().__init__()
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.members, self.batch_size = members, batch_size
        self.used: set[int] = set()
        """Places of the parameters that the model has used in this pass."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _METADATA or not self._uses_parameter((*args, *kwargs.values())):
            return function(*args, **kwargs)
        if handler := _HANDLERS.get(function):
            try:
                return handler(self, *args, **kwargs)
            except _UnknownForm:
                pass
        if self.members.count > 1:
            raise UnsupportedOperation(function)
        return self._substitute(function, args, kwargs)

    def _uses_parameter(self, values) -> bool:
        """Whether one of the values, or of those inside lists and tuples, is a perturbed parameter.

        Asked at every call of a function of torch, of which a small model's time consists.
        """
        found = False
        for value in values:
            if (index := self._index.get(id(value))) is not None:
                self.used.add(index)
                found = True
            elif isinstance(value, (list, tuple)):
                found |= self._uses_parameter(value)
        return found

    def _substitute(self, function, args, kwargs):
        """Call any operation with the only member's parameters."""

        def replace(value):
            if isinstance(value, list | tuple):
                return type(value)(replace(item) for item in value)
            index = self._index.get(id(value))
            return value if index is None else self.members.whole(value, index)

        return function(*map(replace, args), **{name: replace(value) for name, value in kwargs.items()})

    def index(self, parameter: torch.Tensor | None) -> int | None:
        """The parameter's place; None for what is not perturbed."""
        return self._index.get(id(parameter))

    def rows(self, activations: torch.Tensor) -> torch.Tensor:
        """[M * n, ..., d] -> [M, rows of each, d]; for one member any shape."""
        members = self.members.count
        if self.index(activations) is not None:  # a prompt, a table of positions: it would go in unperturbed
            raise _UnknownForm
        if members > 1 and (activations.ndim < 2 or len(activations) % (members * self.batch_size)):
            raise _UnknownForm  # nothing says which rows are whose
        return activations.reshape(members, -1, activations.shape[-1])

    def vector(self, parameter: torch.Tensor | None) -> torch.Tensor | None:
        """[M, 1, d]: a vector as each member sees it; as it is where it is not perturbed."""
        index = self.index(parameter)
        return parameter if index is None else self.members.vector(parameter, index)[:, None]

    def multiply(self, x: torch.Tensor, weight, bias, out_first: bool) -> torch.Tensor:
        """Multiply x by each member's weight and add its bias, in x's leading shape."""
        if weight.ndim != 2 or (bias is not None and bias.ndim != 1):
            raise _UnknownForm
        out = self.members.multiply(
            self.rows(x), weight, self.index(weight), bias, self.index(bias), out_first
        )
        return out.view(*x.shape[:-1], -1)


# The handlers' arguments have torch's names, as a call may give them by keyword.


def _embedding(mode: Perturbed, input, weight, padding_idx=None, max_norm=None, *args, **kwargs):
    if max_norm is not None or mode.index(input) is not None:  # the first renormalises the table in place
        raise _UnknownForm
    members, batch = mode.members.count, mode.batch_size
    if members == 1:
        return mode.members.look_up(input.reshape(1, -1), weight, mode.index(weight)).view(*input.shape, -1)
    shared = input.ndim == 2 and len(input) == 1  # one row of position ids serves every member and sequence
    if not shared and (input.ndim < 2 or len(input) != members * batch):
        raise _UnknownForm
    each = input.expand(members, -1) if shared else input
    out = mode.members.look_up(each.reshape(members, -1), weight, mode.index(weight)).view(*each.shape, -1)
    return out.repeat_interleave(batch, dim=0) if shared else out


def _linear(mode: Perturbed, input, weight, bias=None):
    return mode.multiply(input, weight, bias, out_first=True)


def _addmm(mode: Perturbed, input, mat1, mat2, *, beta=1, alpha=1, **more):
    if beta != 1 or alpha != 1 or more:
        raise _UnknownForm
    return mode.multiply(mat1, mat2, input, out_first=False)


def _layer_norm(mode: Perturbed, input, normalized_shape, weight=None, bias=None, eps=1e-5):
    if len(normalized_shape) != 1:
        raise _UnknownForm
    out = F.layer_norm(mode.rows(input), normalized_shape, eps=eps)
    weight, bias = mode.vector(weight), mode.vector(bias)
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias).view(input.shape)


def _mul(mode: Perturbed, input, other, **more):
    vector, x = (input, other) if mode.index(input) is not None else (other, input)
    if more or vector.ndim != 1 or not isinstance(x, torch.Tensor) or not x.ndim:
        raise _UnknownForm
    if len(vector) not in (1, x.shape[-1]):  # x would grow
        raise _UnknownForm
    return (mode.rows(x) * mode.vector(vector)).view(x.shape)


_HANDLERS = {
    F.embedding: _embedding,
    F.linear: _linear,
    torch.addmm: _addmm,
    F.layer_norm: _layer_norm,
    torch.Tensor.mul: _mul,
    torch.mul: _mul,
}
