"""First-order update rules for any gradient, backprop's or an estimate: torch.optim's own, and MuDaMW.

The same rule serves every mode, so a difference between modes is never the optimizer's. State goes to
disk through :func:`pack_state`, not through ``load_state_dict``, which casts state to the parameter's
dtype and would halve the precision of MuDaMW's under bf16 parameters.

Half precision: torch's own keep momentum and moments in the parameter's dtype; MuDaMW keeps fp32.
Neither keeps a master copy, so a change below half a unit in the last place of a bf16 parameter (2^-9
of its size) rounds to nothing: train on fp32 parameters under autocast where that matters.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from zo.errors import UserError, unknown

OPTIMIZERS = ("sgd", "adam", "adamw", "muon", "mudamw")
MUON_MOMENTUM = 0.95  # torch.optim.Muon's default, Keller Jordan's value

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # https://kellerjordan.github.io/posts/muon/


def build_optimizers(
    name: str,
    named_parameters: list[tuple[str, Parameter]],
    roles: dict[str, str],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    cautious: bool = False,
) -> list[Optimizer]:
    """Make the optimizers of a run: one, or for ``muon`` up to two, which step together.

    ``roles`` is :func:`zo.models.parameter_roles`'. ``momentum`` belongs to sgd and muon; 0 means the
    optimizer's own, which is none for sgd and 0.95 for muon. ``weight_decay`` is L2 in the gradient for
    sgd and adam (torch's), decoupled for the others. ``cautious`` belongs to mudamw. UserError for an
    unknown name, a setting that the optimizer would ignore, and a scope without parameters.
    """
    _check_settings(name, named_parameters, momentum, cautious)
    parameters = [parameter for _, parameter in named_parameters]
    adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    match name:
        case "sgd":
            return [torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)]
        case "adam":
            return [torch.optim.Adam(parameters, **adam)]
        case "adamw":
            return [torch.optim.AdamW(parameters, **adam)]
        case "mudamw":
            return [MuDaMW(parameters, cautious=cautious, **adam)]
    hidden = [parameter for key, parameter in named_parameters if roles[key] == "hidden"]
    others = [parameter for key, parameter in named_parameters if roles[key] != "hidden"]
    muon = [_build_muon(hidden, lr, momentum, weight_decay)] if hidden else []
    return muon + ([torch.optim.AdamW(others, **adam)] if others else [])


def _build_muon(hidden: list[Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """Make torch's Muon with steps of AdamW's RMS (0.2 sqrt(max side)), so both groups share one ``lr``.

    torch's buffer is an average, m <- mu m + (1-mu) g, not the sum its docstring writes (the scale
    cancels in the Newton-Schulz steps), with Nesterov's look-ahead. Those steps run in bf16 whatever
    the parameter's dtype: results carry about 1 % and differ between devices (MuDaMW's run in fp32).
    """
    return torch.optim.Muon(
        hidden,
        lr=lr,
        momentum=momentum or MUON_MOMENTUM,
        weight_decay=weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )


def _check_settings(name: str, named_parameters: list, momentum: float, cautious: bool) -> None:
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    if not named_parameters:
        raise UserError("nothing to train: the scope has no parameters")
    if momentum and name not in ("sgd", "muon"):
        raise UserError(f"momentum {momentum} is for sgd and muon; {name} has betas")
    if cautious and name != "mudamw":
        raise UserError(f"cautious is for mudamw, not for {name}")


def set_learning_rate(optimizers: Iterable[Optimizer], lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


# -- MuDaMW ---------------------------------------------------------------------------------------


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """Push every singular value of ``matrix`` [rows, columns] towards 1, in fp32; U S V^T -> about U V^T.

    Each step is X <- a X + (b A + c A^2) X with A = X X^T, on the wide orientation and starting at
    Frobenius norm 1. The coefficients maximise the slope at zero instead of converging, so five steps
    leave values in about [0.68, 1.2]; one that began below 0.0015 of the norm stays smaller (each step
    multiplies it by 3.44). A zero matrix stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.float().T if tall else matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuDaMW(Optimizer):
    """AdamW whose normalised direction is orthogonalised for every matrix, embedding and head included.

    u = m_hat / (sqrt(v_hat) + eps), as in AdamW. A matrix takes theta <- theta - lr 0.2 sqrt(max(rows,
    columns)) newton_schulz(u), which has AdamW's usual RMS of 0.2 lr (https://arxiv.org/abs/2502.16982);
    a vector takes AdamW's theta <- theta - lr u. Weight decay is decoupled and comes first. ``cautious``
    masks the direction that is applied, hence after the Newton-Schulz steps (:func:`cautious_mask`).

    Moments and arithmetic are fp32 for any parameter dtype; the new value is rounded once, to nearest.
    Parameters of three or more dimensions raise UserError: which of their sides are a matrix's is not
    ours to guess, and no supported model has any.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        cautious: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "cautious": cautious,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Add a group as torch does; UserError for a parameter of three or more dimensions."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim > 2:
                raise UserError(f"mudamw takes vectors and matrices, not shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; returns the closure's loss, as torch's own do."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Parameter, group: dict) -> None:
        gradient, step = parameter.grad.float(), group["lr"]
        direction = self._adam_direction(parameter, gradient, group)
        if parameter.ndim == 2:
            direction = newton_schulz(direction)
            step *= 0.2 * math.sqrt(max(parameter.shape))
        if group["cautious"]:
            direction = direction * cautious_mask(direction, gradient)
        decayed = parameter.float() * (1 - group["lr"] * group["weight_decay"])
        parameter.copy_(decayed.sub_(direction, alpha=step))

    def _adam_direction(self, parameter: Parameter, gradient: Tensor, group: dict) -> Tensor:
        """Update the moments and return m_hat / (sqrt(v_hat) + eps), in fp32, shaped as the parameter."""
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(gradient)
            state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        return (state["exp_avg"] / (1 - beta1 ** state["step"])).div_(root)


def cautious_mask(direction: Tensor, gradient: Tensor) -> Tensor:
    """Zero where the two disagree in sign, elsewhere 1 / mean(mask), the mean clamped at 1e-3 (C-AdamW).

    Source: https://arxiv.org/abs/2411.16085. On a noisy zeroth-order gradient about half disagree.
    """
    mask = (direction * gradient > 0).float()
    return mask / mask.mean().clamp(min=1e-3)


# -- state to disk and back -----------------------------------------------------------------------


def pack_state(optimizers: list[Optimizer]) -> tuple[dict[str, Tensor], dict]:
    """Name all state: tensors ``<optimizer>.<parameter>.<key>`` for safetensors, and plain JSON.

    The tensors are the optimizers' own, not copies.

    Parameters are numbered in the order given to :func:`build_optimizers`. The JSON has each group's
    learning rate and whatever state is not a tensor; other settings are the run spec's to bring back.
    """
    tensors, scalars = {}, {"optimizers": _class_names(optimizers), "lr": [], "state": {}}
    for i, optimizer in enumerate(optimizers):
        scalars["lr"].append([group["lr"] for group in optimizer.param_groups])
        for j, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{i}.{j}.{key}"] = value.detach()
                else:
                    scalars["state"][f"{i}.{j}.{key}"] = value
    return tensors, scalars


def unpack_state(optimizers: list[Optimizer], tensors: dict[str, Tensor], scalars: dict) -> None:
    """Put back what :func:`pack_state` took, bit for bit, into optimizers built the same way.

    Tensors go to their parameter's device, but for torch's step counters, which live on the CPU (0-dim).
    UserError if the state was packed from another optimizer or from other parameter shapes.
    """
    if scalars["optimizers"] != _class_names(optimizers):
        raise UserError(f"state packed from {scalars['optimizers']}, not from {_class_names(optimizers)}")
    for optimizer, rates in zip(optimizers, scalars["lr"], strict=True):
        optimizer.state.clear()
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
    numbered = [list(_parameters(optimizer)) for optimizer in optimizers]
    for name, value in [*tensors.items(), *scalars["state"].items()]:
        i, j, key = name.split(".", 2)
        if int(j) >= len(numbered[int(i)]):
            raise UserError(f"the packed state has more parameters than the optimizer: {name}")
        parameter = numbered[int(i)][int(j)]
        optimizers[int(i)].state[parameter][key] = _place(name, value, parameter)


def _place(name: str, value, parameter: Parameter):
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0:
        return value.clone()
    if value.shape != parameter.shape:
        raise UserError(f"packed state {name}: shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
    return value.to(parameter.device, copy=True)


def _class_names(optimizers: list[Optimizer]) -> list[str]:
    return [type(optimizer).__name__ for optimizer in optimizers]


def _parameters(optimizer: Optimizer) -> Iterable[Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
