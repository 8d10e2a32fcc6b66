"""The perturbed forward pass by itself: what a mode answers, what it leaves alone, and when it ends."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from zo.members import DenseMembers
from zo.noise import Noise
from zo.perturbed import Batched, Substituted, UnsupportedOperation
from zo.scratch import Scratch

NOISE = Noise("gaussian", 1, 2)
MEMBERS = [(0, 0.5), (0, -0.5), (3, 0.25)]
ROWS, WIDTH = 2, 6


def dense(members):
    return DenseMembers(NOISE.fill_, Scratch(), members)


@pytest.fixture
def theta():
    draw = torch.Generator().manual_seed(0)
    shapes = {"matrix": (WIDTH, WIDTH), "bias": (WIDTH,), "norm": (WIDTH,), "table": (9, WIDTH)}
    values = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    return SimpleNamespace(**{name: torch.nn.Parameter(value) for name, value in values.items()})


OPERATIONS = {
    "linear": lambda t, x: F.linear(x, t.matrix, t.bias),
    "linear, weight by keyword": lambda t, x: F.linear(x, weight=t.matrix),
    "linear, two axes": lambda t, x: F.linear(x[:, 0], t.matrix, t.bias),
    "addmm": lambda t, x: torch.addmm(t.bias, x.flatten(0, 1), t.matrix).view(x.shape),
    "layer_norm": lambda t, x: F.layer_norm(x, (WIDTH,), t.norm, t.bias, 1e-3),
    "layer_norm without bias": lambda t, x: F.layer_norm(x, (WIDTH,), t.norm),
    "mul": lambda t, x: t.norm * x,
    "mul, other side": lambda t, x: x * t.norm,
    "embedding": lambda t, x: F.embedding((x > 0).long().sum(-1), t.table),
    "embedding and head tied": lambda t, x: F.linear(F.embedding((x > 0).long().sum(-1), t.table), t.table),
}


def perturbed(theta, names, query, scale):
    """Dense: the parameters as one member should see them."""
    copy = SimpleNamespace(**vars(theta))
    for index, name in enumerate(names):
        value = getattr(theta, name).detach()
        setattr(copy, name, value + scale * NOISE.fill_(torch.empty_like(value), query, index))
    return copy


def member_input(members=3):
    """[members * ROWS, 5, WIDTH], each member's rows its own."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(members * ROWS, 5, WIDTH, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(
    "names", [("matrix", "bias", "norm", "table"), ("bias",), ("matrix", "norm"), ("table",)]
)
@pytest.mark.parametrize("operation", OPERATIONS)
@torch.no_grad()
def test_each_member_is_answered_as_with_its_own_dense_weights(theta, operation, names):
    compute, x = OPERATIONS[operation], member_input()
    parameters = [getattr(theta, name) for name in names]
    expected = torch.cat([
        compute(perturbed(theta, names, query, scale), part)
        for (query, scale), part in zip(MEMBERS, x.chunk(len(MEMBERS)), strict=True)
    ])  # fmt: skip
    with Batched(parameters, dense(MEMBERS), ROWS):
        together = compute(theta, x)
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-12)
    for (query, scale), part, one in zip(MEMBERS, x.chunk(3), expected.chunk(3), strict=True):
        with Substituted(parameters, NOISE.fill_, Scratch(), query, scale):
            torch.testing.assert_close(compute(theta, part), one, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_position_ids_of_one_row_serve_every_member_and_every_sequence(theta):
    ids = torch.arange(5)[None]
    with Batched([theta.table], dense(MEMBERS), ROWS):
        together = F.embedding(ids, theta.table)
    expected = [perturbed(theta, ["table"], *member).table[ids].expand(ROWS, 5, WIDTH) for member in MEMBERS]
    torch.testing.assert_close(together, torch.cat(expected), rtol=1e-12, atol=1e-12)


UNKNOWN = {
    "add": lambda t, x: x + t.norm,
    "matmul": lambda t, x: x @ t.matrix,
    "t": lambda t, x: x @ t.matrix.t(),
    "__getitem__": lambda t, x: t.table[x.long()],
    "cat": lambda t, x: torch.cat([t.matrix, t.matrix]),
    "rms_norm": lambda t, x: F.rms_norm(x, (WIDTH,), t.norm),
    "mul": lambda t, x: t.matrix * x[0, 0],
    "detach": lambda t, x: F.linear(x, t.matrix.detach()),
}


@pytest.mark.parametrize("name", UNKNOWN)
@torch.no_grad()
def test_any_other_use_of_a_parameter_is_noticed_and_still_right_one_member_at_a_time(theta, name):
    names = ("matrix", "norm", "table")
    parameters, x = [getattr(theta, name) for name in names], member_input(1).abs()
    with (
        pytest.raises(UnsupportedOperation) as unsupported,
        Batched(parameters, dense(MEMBERS[:1]), ROWS),
    ):
        UNKNOWN[name](theta, x)
    assert unsupported.value.operation == name
    with Substituted(parameters, NOISE.fill_, Scratch(), 3, 0.25):
        answer = UNKNOWN[name](theta, x)
    torch.testing.assert_close(
        answer, UNKNOWN[name](perturbed(theta, names, 3, 0.25), x), rtol=1e-12, atol=1e-12
    )


@torch.no_grad()
def test_what_is_asked_about_a_parameter_without_its_values_is_answered_by_the_parameter(theta):
    parameters = [theta.matrix]
    for mode in (
        Batched(parameters, dense(MEMBERS), ROWS),
        Substituted(parameters, NOISE.fill_, Scratch(), 0, 1.0),
    ):
        with mode:
            assert theta.matrix.shape == theta.matrix.size() == (WIDTH, WIDTH)
            assert (theta.matrix.dtype, theta.matrix.device.type) == (torch.float64, "cpu")
            assert theta.matrix.is_contiguous()
            assert theta.matrix.requires_grad
            assert theta.matrix.numel() == WIDTH * WIDTH


@torch.no_grad()
def test_a_mode_ends_with_its_block_also_by_an_error_and_leaves_other_tensors_alone(theta):
    x = member_input(1)
    plain, other = F.linear(x, theta.matrix), F.linear(x, theta.matrix.clone())
    with Substituted([theta.matrix], NOISE.fill_, Scratch(), 0, 1.0):
        assert not torch.equal(F.linear(x, theta.matrix), plain)
        assert torch.equal(F.linear(x, theta.table), x @ theta.table.T)
    assert torch.equal(F.linear(x, theta.matrix), plain)
    mode = Substituted([theta.matrix], NOISE.fill_, Scratch(), 0, 1.0)
    with pytest.raises(RuntimeError, match="shapes"), mode:
        F.linear(x[..., :2], theta.matrix)
    assert torch.equal(F.linear(x, theta.matrix), plain)
    assert torch.equal(plain, other)


@pytest.mark.parametrize(
    ("dtype", "scratch"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_scratch_is_reused_and_never_below_fp32(dtype, scratch):
    arena = Scratch()
    large, beside = arena.take(torch.empty(4, 5, dtype=dtype), torch.empty(3, dtype=dtype))
    assert (large.dtype, large.shape, beside.shape) == (scratch, (4, 5), (3,))
    assert beside.data_ptr() == large.data_ptr() + large.numel() * large.element_size()
    (small,) = arena.take(torch.empty(3, dtype=dtype))
    assert small.data_ptr() == large.data_ptr()
