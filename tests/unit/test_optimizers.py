"""Every update rule against a textbook trajectory in fp64 that shares no code with zo or torch.optim."""

import json
import math

import pytest
import safetensors.torch
import torch

from zo.errors import UserError
from zo.optimizers import (
    OPTIMIZERS,
    MuDaMW,
    build_optimizers,
    cautious_mask,
    newton_schulz,
    pack_state,
    set_learning_rate,
    unpack_state,
)

SHAPES = {"wte": (20, 4), "wide": (6, 16), "tall": (16, 6), "bias": (7,), "head": (24, 4)}
ROLES = {"wte": "embedding", "wide": "hidden", "tall": "hidden", "bias": "vector", "head": "head"}
STEPS, LR = 6, 0.02


def draw(name: str, step: int) -> torch.Tensor:
    """The value of a parameter (step 0) or its gradient at step 1, 2, ...: standard normal, fp64."""
    generator = torch.Generator().manual_seed(1000 * step + sorted(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)


def make_parameters(dtype: torch.dtype, names=tuple(SHAPES)) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, torch.nn.Parameter(draw(name, 0).to(dtype))) for name in names]


def train(optimizers, named, steps) -> None:
    for step in steps:
        for name, parameter in named:
            parameter.grad = draw(name, step).to(parameter.dtype)
        for optimizer in optimizers:
            optimizer.step()


def run(name: str, dtype=torch.float64, **settings) -> dict[str, torch.Tensor]:
    named = make_parameters(dtype)
    train(build_optimizers(name, named, ROLES, lr=LR, **settings), named, range(1, STEPS + 1))
    return {key: parameter.detach() for key, parameter in named}


# -- the oracles: theta_STEPS of one parameter ----------------------------------------------------


def sgd_oracle(name, momentum=0.0, weight_decay=0.0):
    theta, buffer = draw(name, 0), 0.0
    for t in range(1, STEPS + 1):
        buffer = momentum * buffer + draw(name, t) + weight_decay * theta
        theta = theta - LR * buffer
    return theta


def adam_oracle(name, weight_decay=0.0, decoupled=False, betas=(0.9, 0.999), eps=1e-8, finish=None):
    """Adam, AdamW, and MuDaMW where ``finish(direction, gradient)`` makes the applied direction."""
    theta, gradients = draw(name, 0), []
    for t in range(1, STEPS + 1):
        gradients.append(draw(name, t) + (0 if decoupled else weight_decay * theta))
        m_hat, v_hat = (
            sum(beta ** (t - s) * gradients[s - 1] ** power for s in range(1, t + 1))
            * (1 - beta)
            / (1 - beta**t)
            for beta, power in zip(betas, (1, 2), strict=True)
        )
        direction = m_hat / (v_hat.sqrt() + eps)
        if finish:
            direction = finish(direction, draw(name, t))
        theta = theta - LR * (direction + (weight_decay * theta if decoupled else 0))
    return theta


def newton_schulz_oracle(matrix):
    """The odd polynomial, five times, on the singular values themselves."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vt


def muon_oracle(name, momentum=0.95, weight_decay=0.0):
    theta, average = draw(name, 0), 0.0
    for t in range(1, STEPS + 1):
        average = momentum * average + (1 - momentum) * draw(name, t)
        ahead = momentum * average + (1 - momentum) * draw(name, t)
        step = 0.2 * math.sqrt(max(theta.shape)) * newton_schulz_oracle(ahead)
        theta = theta - LR * (step + weight_decay * theta)
    return theta


def mudamw_oracle(name, weight_decay=0.0, cautious=False, **settings):
    def finish(direction, gradient):
        if direction.ndim == 2:
            direction = 0.2 * math.sqrt(max(direction.shape)) * newton_schulz_oracle(direction)
        if cautious:
            agree = torch.sign(direction) == torch.sign(gradient)
            direction = torch.where(agree, direction * agree.numel() / agree.sum(), 0.0)
        return direction

    return adam_oracle(name, weight_decay, decoupled=True, finish=finish, **settings)


# -- update rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_sgd_follows_the_textbook(settings):
    for name, theta in run("sgd", **settings).items():
        torch.testing.assert_close(theta, sgd_oracle(name, **settings), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"betas": (0.8, 0.95), "eps": 1e-3}])
@pytest.mark.parametrize("rule", ["adam", "adamw"])
def test_adam_and_adamw_follow_the_textbook(rule, settings):
    for name, theta in run(rule, **settings).items():
        expected = adam_oracle(name, decoupled=rule == "adamw", **settings)
        torch.testing.assert_close(theta, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.8, "weight_decay": 0.1}])
def test_muon_follows_the_textbook_to_the_precision_of_its_bf16_steps(settings):
    weight_decay = settings.get("weight_decay", 0.0)
    for name, theta in run("muon", **settings).items():
        if ROLES[name] == "hidden":
            expected = muon_oracle(name, **settings)
            error = (theta - expected).norm() / (expected - draw(name, 0)).norm()
            assert error < 0.02, f"{name}: {error}"
        else:
            expected = adam_oracle(name, weight_decay, decoupled=True)
            torch.testing.assert_close(theta, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.1}, {"cautious": True, "weight_decay": 0.1}, {"betas": (0.8, 0.95), "eps": 0.1}],
)
def test_mudamw_follows_the_textbook(settings):
    for name, theta in run("mudamw", torch.float32, **settings).items():
        expected = mudamw_oracle(name, **settings)
        torch.testing.assert_close(theta.double(), expected, rtol=1e-5, atol=1e-5)


def test_mudamw_on_a_vector_is_torch_adamw():
    (_, ours), (_, theirs) = make_parameters(torch.float32, ["bias", "bias"])
    settings = {"lr": LR, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    train([MuDaMW([ours], **settings)], [("bias", ours)], range(1, 20))
    train([torch.optim.AdamW([theirs], **settings)], [("bias", theirs)], range(1, 20))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_mudamw_steps_have_a_root_mean_square_near_a_fifth_of_the_learning_rate():
    for name in ("wide", "tall", "wte"):
        named = make_parameters(torch.float32, [name])
        train(build_optimizers("mudamw", named, ROLES, lr=LR), named, [1])
        rms = (named[0][1].double() - draw(name, 0)).square().mean().sqrt() / LR
        assert 0.2 * 0.65 < rms < 0.2 * 1.25


def test_mudamw_refuses_three_dimensions_and_names_the_shape():
    with pytest.raises(UserError, match=r"\(2, 3, 4\)"):
        MuDaMW([torch.nn.Parameter(torch.zeros(2, 3, 4))])


def test_a_parameter_without_a_gradient_is_left_alone():
    named = make_parameters(torch.float32, ["wide", "bias"])
    optimizer = MuDaMW([parameter for _, parameter in named], weight_decay=0.1)
    train([optimizer], named[:1], [1])
    assert torch.equal(named[1][1], draw("bias", 0).float())
    assert named[1][1] not in optimizer.state


def test_mudamw_keeps_fp32_state_and_rounds_a_bf16_parameter_once_a_step():
    named = make_parameters(torch.bfloat16)
    exact = [(name, torch.nn.Parameter(parameter.detach().float())) for name, parameter in named]
    optimizers = build_optimizers("mudamw", named, ROLES, lr=LR, weight_decay=0.1)
    references = build_optimizers("mudamw", exact, ROLES, lr=LR, weight_decay=0.1)
    for (name, parameter), (_, reference) in zip(named, exact, strict=True):
        parameter.grad = draw(name, 1).bfloat16()
        reference.grad = parameter.grad.float()
    optimizers[0].step()
    references[0].step()
    for (_, parameter), (_, reference) in zip(named, exact, strict=True):
        assert torch.equal(parameter, reference.bfloat16())
        assert optimizers[0].state[parameter]["exp_avg"].dtype == torch.float32


# -- Newton-Schulz and the mask -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (64, 256), (48, 144), (5, 200), (100, 3), (1, 7)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    for seed in range(5):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for scale in (1e-3, 1.0, 1e3):
            values = torch.linalg.svdvals(newton_schulz(matrix * scale))
            assert values.min() > 0.65
            assert values.max() < 1.25


def test_newton_schulz_changes_singular_values_only_and_works_in_fp32():
    matrix = draw("wide", 1)
    for given in (matrix, matrix.T):
        result = newton_schulz(given)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), newton_schulz_oracle(given), rtol=1e-4, atol=1e-5)


def test_newton_schulz_of_zero_is_zero():
    assert torch.equal(newton_schulz(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_cautious_mask_keeps_agreeing_signs_and_the_mean():
    direction, gradient = torch.tensor([1.0, -2.0, 3.0, 4.0]), torch.tensor([5.0, -1.0, -1.0, 0.0])
    assert torch.equal(cautious_mask(direction, gradient), torch.tensor([2.0, 2.0, 0.0, 0.0]))
    assert torch.equal(cautious_mask(direction, -direction), torch.zeros(4))
    lone = cautious_mask(torch.ones(10_000), -torch.ones(10_000).index_fill_(0, torch.tensor([3]), -1.0))
    assert lone.max() == pytest.approx(1000)  # the clamp: 10,000 without


# -- choosing -------------------------------------------------------------------------------------


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    named = make_parameters(torch.float32)
    muon, adamw = build_optimizers("muon", named, ROLES, lr=LR)
    by_name = dict(named)
    assert muon.param_groups[0]["params"] == [by_name["wide"], by_name["tall"]]
    assert adamw.param_groups[0]["params"] == [by_name["wte"], by_name["bias"], by_name["head"]]
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    assert muon.param_groups[0]["momentum"] == 0.95


@pytest.mark.parametrize(
    ("names", "kind"), [(["wte", "bias"], torch.optim.AdamW), (["wide"], torch.optim.Muon)]
)
def test_muon_is_one_optimizer_where_the_scope_has_one_kind(names, kind):
    optimizers = build_optimizers("muon", make_parameters(torch.float32, names), ROLES, lr=LR)
    assert [type(optimizer) for optimizer in optimizers] == [kind]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_zero_by_default_and_a_zero_learning_rate_freezes(name):
    named = make_parameters(torch.float32)
    optimizers = build_optimizers(name, named, ROLES, lr=LR)
    assert all(group["weight_decay"] == 0 for optimizer in optimizers for group in optimizer.param_groups)
    set_learning_rate(optimizers, 0.0)
    train(optimizers, named, [1, 2])
    assert all(torch.equal(parameter, draw(key, 0).float()) for key, parameter in named)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("admw", {}, "did you mean 'adamw'"),
        ("adam", {"momentum": 0.9}, "momentum"),
        ("adamw", {"cautious": True}, "cautious"),
    ],
)
def test_a_setting_that_would_be_ignored_is_an_error(name, settings, words):
    with pytest.raises(UserError, match=words):
        build_optimizers(name, make_parameters(torch.float32), ROLES, lr=LR, **settings)


def test_an_empty_scope_is_an_error():
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizers("sgd", [], {}, lr=LR)


# -- state to disk and back -----------------------------------------------------------------------

RULES = [(name, {}) for name in OPTIMIZERS] + [("sgd", {"momentum": 0.9}), ("mudamw", {"cautious": True})]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "settings"), RULES)
def test_training_goes_on_bit_for_bit_after_pack_and_unpack(name, settings, dtype):
    settings = {"lr": LR, "weight_decay": 0.01, **settings}
    straight = make_parameters(dtype)
    optimizers = build_optimizers(name, straight, ROLES, **settings)
    train(optimizers, straight, [1, 2, 3])
    set_learning_rate(optimizers, 0.1 + 0.2)
    tensors, scalars = pack_state(optimizers)
    blob, text = safetensors.torch.save(tensors), json.dumps(scalars)

    resumed = [(key, torch.nn.Parameter(parameter.detach().clone())) for key, parameter in straight]
    rebuilt = build_optimizers(name, resumed, ROLES, **settings)
    unpack_state(rebuilt, safetensors.torch.load(blob), json.loads(text))
    train(optimizers, straight, [4, 5, 6])
    train(rebuilt, resumed, [4, 5, 6])
    for (key, expected), (_, got) in zip(straight, resumed, strict=True):
        assert torch.equal(got, expected), key
    assert safetensors.torch.save(pack_state(rebuilt)[0]) == safetensors.torch.save(pack_state(optimizers)[0])


def test_packing_copies_nothing_and_unpacking_shares_nothing():
    """A checkpoint is written at once, and a copy of Adam's state would be twice the weights."""
    named = make_parameters(torch.float32)
    optimizers = build_optimizers("adam", named, ROLES, lr=LR)
    train(optimizers, named, [1])
    tensors, scalars = pack_state(optimizers)
    assert {tensor.data_ptr() for tensor in tensors.values()} == {
        value.data_ptr() for state in optimizers[0].state.values() for value in state.values()
    }
    rebuilt = build_optimizers("adam", named, ROLES, lr=LR)
    unpack_state(rebuilt, tensors, scalars)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    train(rebuilt, named, [2])
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize(
    ("name", "names"), [("adamw", ["wide", "bias"]), ("adam", ["bias", "wide"]), ("adam", ["wide"])]
)
def test_state_of_another_optimizer_or_scope_is_refused(name, names):
    named = make_parameters(torch.float32, ["wide", "bias"])
    optimizers = build_optimizers("adam", named, ROLES, lr=LR)
    train(optimizers, named, [1])
    others = build_optimizers(name, make_parameters(torch.float32, names), ROLES, lr=LR)
    with pytest.raises(UserError):
        unpack_state(others, *pack_state(optimizers))
