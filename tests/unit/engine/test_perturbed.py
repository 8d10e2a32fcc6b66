"""The perturbed forward pass by itself: what a mode answers, what it leaves alone, and when it ends."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from zo.engine import directions
from zo.engine.members import DenseMembers
from zo.engine.noise import Noise
from zo.engine.perturbed import Perturbed, UnsupportedOperation
from zo.engine.scratch import Scratch

NOISE = Noise("gaussian", 1, 2)
QUERIES, SCALES = [0, 3], [0.5, -0.25]
MEMBERS = [(query, scale) for query in QUERIES for scale in SCALES]
ROWS, WIDTH = 2, 6


def many():
    return DenseMembers(NOISE, Scratch(), QUERIES, SCALES, [torch.empty(0, dtype=torch.float64)])


def one(query=0, scale=1.0):
    return DenseMembers(NOISE, Scratch(), [query], [scale], [torch.empty(0, dtype=torch.float64)])


@pytest.fixture
def theta():
    draw = torch.Generator().manual_seed(0)
    shapes = {"matrix": (WIDTH, WIDTH), "bias": (WIDTH,), "norm": (WIDTH,), "table": (9, WIDTH)}
    shapes["prompt"] = (len(MEMBERS) * ROWS, WIDTH)  # as many rows as a batch has sequences
    values = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    return SimpleNamespace(**{name: torch.nn.Parameter(value) for name, value in values.items()})


OPERATIONS = {
    "linear": lambda t, x: F.linear(x, t.matrix, t.bias),
    "linear, weight by keyword": lambda t, x: F.linear(x, weight=t.matrix),
    "linear, all by keyword": lambda t, x: F.linear(input=x, weight=t.matrix, bias=t.bias),
    "linear, two axes": lambda t, x: F.linear(x[:, 0], t.matrix, t.bias),
    "addmm": lambda t, x: torch.addmm(t.bias, x.flatten(0, 1), t.matrix).view(x.shape),
    "addmm, all by keyword": lambda t, x: torch.addmm(input=t.bias, mat1=x.flatten(0, 1), mat2=t.matrix).view(
        x.shape
    ),
    "layer_norm": lambda t, x: F.layer_norm(x, (WIDTH,), t.norm, t.bias, 1e-3),
    "layer_norm, all by keyword": lambda t, x: F.layer_norm(
        input=x, normalized_shape=(WIDTH,), weight=t.norm, bias=t.bias, eps=1e-3
    ),
    "layer_norm without bias": lambda t, x: F.layer_norm(x, (WIDTH,), t.norm),
    "mul": lambda t, x: t.norm * x,
    "mul, other side": lambda t, x: x * t.norm,
    "mul, by keyword": lambda t, x: torch.mul(x, other=t.norm),
    "mul, all by keyword": lambda t, x: torch.mul(input=t.norm, other=x),
    "embedding": lambda t, x: F.embedding((x > 0).long().sum(-1), t.table),
    "embedding and head tied": lambda t, x: F.linear(F.embedding((x > 0).long().sum(-1), t.table), t.table),
}


def perturbed(theta, names, query, scale):
    """Dense: the parameters as one member should see them."""
    copy = SimpleNamespace(**vars(theta))
    for index, name in enumerate(names):
        value = getattr(theta, name).detach()
        noise = NOISE.fill_(torch.empty_like(torch.atleast_1d(value)), query, index).view(value.shape)
        setattr(copy, name, value + scale * noise)
    return copy


def member_input(members=4):
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
    with Perturbed(parameters, many(), ROWS):
        together = compute(theta, x)
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-12)
    for (query, scale), part, answer in zip(MEMBERS, x.chunk(4), expected.chunk(4), strict=True):
        with Perturbed(parameters, one(query, scale), ROWS):
            torch.testing.assert_close(compute(theta, part), answer, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_position_ids_of_one_row_serve_every_member_and_every_sequence(theta):
    ids = torch.arange(5)[None]
    with Perturbed([theta.table], many(), ROWS):
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
    "mul, of two": lambda t, x: x * (t.norm * t.norm),
    "addmm": lambda t, x: torch.addmm(t.norm, x.flatten(0, 1), t.matrix, beta=2, alpha=3),
    "detach": lambda t, x: F.linear(x, t.matrix.detach()),
    "embedding": lambda t, x: F.embedding(torch.arange(4), t.table),  # rows of no member in particular
    "linear, one sequence's rows": lambda t, x: F.linear(x[0], t.matrix),
    # Of what is no activation but a parameter itself:
    "linear, a prompt's": lambda t, x: F.linear(t.prompt, t.matrix),
    "addmm, a prompt's": lambda t, x: torch.addmm(t.norm, t.prompt, t.matrix),
    "layer_norm, a prompt's": lambda t, x: F.layer_norm(t.prompt, (WIDTH,), t.norm),
    "mul, a prompt's": lambda t, x: t.prompt * t.norm,
    # Of other shapes:
    "linear, a weight of one axis": lambda t, x: F.linear(x, t.norm),
    "addmm, a bias of two axes": lambda t, x: torch.addmm(t.prompt, x.flatten(0, 1)[:8], t.matrix),
    "layer_norm, two axes": lambda t, x: F.layer_norm(
        x[:, :1].expand(-1, WIDTH, -1), (WIDTH, WIDTH), t.matrix
    ),
    "mul, by a number": lambda t, x: x * (t.norm * 0.5),
    "mul, a number by it": lambda t, x: x * (0.5 * t.norm),
    "mul, by a tensor of no axis": lambda t, x: x * (t.norm * torch.tensor(0.5)),
    "mul, what it makes grow": lambda t, x: x[..., None] * t.norm,
    "mul, into a buffer": lambda t, x: torch.mul(x, t.norm, out=torch.empty_like(x)),
}


@pytest.mark.parametrize("name", UNKNOWN)
@torch.no_grad()
def test_any_other_use_of_a_parameter_is_noticed_and_still_right_one_member_at_a_time(theta, name):
    names = ("matrix", "norm", "table", "prompt")
    parameters, x = [getattr(theta, name) for name in names], member_input(1).abs()
    with pytest.raises(UnsupportedOperation) as unsupported, Perturbed(parameters, many(), ROWS):
        UNKNOWN[name](theta, member_input().abs())
    assert unsupported.value.operation == name.split(",")[0]
    with Perturbed(parameters, one(3, 0.25), ROWS):
        answer = UNKNOWN[name](theta, x)
    torch.testing.assert_close(
        answer, UNKNOWN[name](perturbed(theta, names, 3, 0.25), x), rtol=1e-12, atol=1e-12
    )


@torch.no_grad()
def test_rows_that_are_not_each_members_sequences_are_noticed(theta):
    x = torch.ones(4, WIDTH, dtype=torch.float64)  # one for each member, of ROWS sequences
    for compute in (OPERATIONS["mul"], OPERATIONS["layer_norm"], lambda t, x: F.linear(x, t.matrix)):
        with (
            pytest.raises(UnsupportedOperation, match=r"mul|layer_norm|linear"),
            Perturbed([theta.matrix, theta.norm], many(), ROWS),
        ):
            compute(theta, x)


@torch.no_grad()
def test_what_is_asked_about_a_parameter_without_its_values_is_answered_by_the_parameter(theta):
    for members in (many(), one()):
        with Perturbed([theta.matrix], members, ROWS):
            assert theta.matrix.shape == theta.matrix.size() == (WIDTH, WIDTH)
            assert (theta.matrix.dtype, theta.matrix.device.type) == (torch.float64, "cpu")
            assert theta.matrix.is_contiguous()
            assert theta.matrix.requires_grad
            assert theta.matrix.numel() == WIDTH * WIDTH


@torch.no_grad()
def test_a_mode_ends_with_its_block_also_by_an_error_and_leaves_other_tensors_alone(theta):
    x = member_input(1)
    plain, other = F.linear(x, theta.matrix), F.linear(x, theta.matrix.clone())
    with Perturbed([theta.matrix], one(), ROWS):
        assert not torch.equal(F.linear(x, theta.matrix), plain)
        assert torch.equal(F.linear(x, theta.table), x @ theta.table.T)
    assert torch.equal(F.linear(x, theta.matrix), plain)
    with pytest.raises(RuntimeError, match=r"multiplied|shapes|size"), Perturbed([theta.matrix], one(), ROWS):
        F.linear(x[..., :2], theta.matrix)
    assert torch.equal(F.linear(x, theta.matrix), plain)
    assert torch.equal(plain, other)


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "addmm", "embedding and head tied"])
def test_matrices_of_many_blocks_of_rows_are_perturbed_whole(monkeypatch, theta, name):
    monkeypatch.setitem(directions._BLOCK, "cpu", 2 * WIDTH)
    compute, x, names = OPERATIONS[name], member_input(), ("matrix", "bias", "table")
    expected = torch.cat([
        compute(perturbed(theta, names, query, scale), part)
        for (query, scale), part in zip(MEMBERS, x.chunk(len(MEMBERS)), strict=True)
    ])  # fmt: skip
    with Perturbed([getattr(theta, name) for name in names], many(), ROWS):
        together = compute(theta, x)
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_all_blocks_of_a_parameter_are_perturbed_for_any_operation(monkeypatch, theta):
    monkeypatch.setitem(directions._BLOCK, "cpu", 2 * WIDTH)
    expected = torch.exp(perturbed(theta, ["table"], 3, 0.25).table)
    with Perturbed([theta.table], one(3, 0.25), ROWS):
        torch.testing.assert_close(torch.exp(theta.table), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "addmm"])
def test_blocks_of_rows_change_no_bit_in_half_precision(monkeypatch, theta, name):
    """A sum over blocks would be rounded once for each."""
    half = SimpleNamespace(**{key: value.bfloat16() for key, value in vars(theta).items()})
    found = []
    for block in (2**19, 2 * WIDTH):
        monkeypatch.setitem(directions._BLOCK, "cpu", block)
        with Perturbed([half.matrix, half.bias], many(), ROWS):
            found.append(OPERATIONS[name](half, member_input().bfloat16()))
    assert torch.equal(*found)


def test_scratch_is_reused_and_grows():
    arena = Scratch()
    large = arena.take((4, 5), torch.empty(0))
    assert (large.dtype, large.shape) == (torch.float32, (4, 5))
    assert arena.take((3,), torch.empty(0)).data_ptr() == large.data_ptr()
    assert arena.take((7, 5), torch.empty(0)).shape == (7, 5)
    assert arena.take((3,), torch.empty(0, dtype=torch.float64)).dtype == torch.float64
