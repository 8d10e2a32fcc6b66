"""The estimator against the fp64 textbook (tests/reference.py), and the library entry's promises."""

import copy
import inspect
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from live_bytes import LiveBytes
from torch.nn import CrossEntropyLoss
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from zo import zo_gradient_estimator
from zo.engine import directions
from zo.engine.estimate import Estimate, estimate_gradient
from zo.engine.noise import Noise
from zo.engine.objective import Objective, backpropagate, cosine, dense_norm
from zo.engine.plan import Plan

EPS, SEED, STEP, VOCABULARY, BATCH, LENGTH = 1e-3, 11, 5, 50, 3, 7
PLANS = [Plan("sequential"), *(Plan("parallel", chunk) for chunk in (1, 2, 3, 8))]
MODELS = ["gpt2-tied", "gpt2-untied", "llama-tied", "llama-untied"]


class ExactRMSNorm(LlamaRMSNorm):
    """transformers' computes in fp32 also in an fp64 model, which would hide all below 1e-4."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def build(name: str, dtype=torch.float64):
    """A tiny model whose norms and biases are no longer at 1 and 0, where mistakes could hide."""
    architecture, _, tie = name.partition("-")
    common = {"vocab_size": VOCABULARY, "tie_word_embeddings": tie == "tied", "use_cache": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "gpt2":
            dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **dropouts, **common)
            )
        else:
            shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            model = LlamaForCausalLM(LlamaConfig(intermediate_size=24, **shape, **common))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm) and dtype == torch.float64:
            module.__class__ = ExactRMSNorm
    return model.to(dtype)


class Bigrams(torch.nn.Module):
    """The smallest language model; its logits are its output, as a traced module's must be a tensor."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, 8)
        self.head = torch.nn.Linear(8, VOCABULARY, bias=False)

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


class Answer(torch.nn.Module):
    """A model that answers as those of transformers do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.model(input_ids))


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in MODELS}


@pytest.fixture(scope="module")
def batch():
    """Token ids with padding on the right, and labels that have no loss there and in one middle place."""
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:], mask[2, 3:] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 3] = -100
    return SimpleNamespace(ids=ids, inputs={"input_ids": ids, "attention_mask": mask}, labels=labels)


def make_noise(parameters, q, noise=None, dtype=torch.float64):
    noise = noise or Noise("gaussian", SEED, 0)
    return [
        [
            noise.fill_(torch.empty(p.shape or 1, dtype=dtype), i, j).view(p.shape)
            for j, p in enumerate(parameters)
        ]
        for i in range(q)
    ]


def textbook(model, parameters, inputs, labels, directions, sides="two"):
    def loss(theta):
        clone, _ = reference.write_weights(model, parameters, theta)
        return reference.language_model_loss(clone, inputs, labels)

    with torch.no_grad():
        return reference.estimate(loss, [p.detach() for p in parameters], directions, EPS, sides)


def assert_close(actual, expected, tolerance=1e-9):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def call(model, batch, parameters=None, q=3, loss_fn=None, **options):
    parameters = list(model.parameters()) if parameters is None else parameters
    options = {"seed": SEED} | options
    inputs, labels = options.pop("inputs", batch.inputs), options.pop("labels", batch.labels)
    epsilon = options.pop("epsilon", EPS)
    return zo_gradient_estimator(
        model, parameters, loss_fn or CrossEntropyLoss(), inputs, labels, q, epsilon, "cpu", **options
    )


def as_bytes(tensors):
    return [t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


# -- the oracle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["two", "one"])
@pytest.mark.parametrize("q", [1, 3, 8])
@pytest.mark.parametrize("name", MODELS)
def test_every_plan_gives_the_textbook_estimate(models, batch, name, q, sides):
    model = models[name]
    parameters = list(model.parameters())
    noise = Noise("gaussian", SEED, STEP)
    expected, coefficients, loss = textbook(
        model, parameters, batch.inputs, batch.labels, make_noise(parameters, q, noise), sides
    )
    assert reference.norm(expected) > 1
    objective = Objective(model, F.cross_entropy, batch.inputs, batch.labels[:, 1:])
    for plan in PLANS:
        estimate = estimate_gradient(objective, parameters, noise, q=q, epsilon=EPS, sides=sides, plan=plan)
        assert estimate.coefficients.tolist() == pytest.approx(coefficients, rel=1e-9, abs=1e-9)
        assert_close(estimate.gradients(parameters), expected)
        assert estimate.loss == pytest.approx(loss, rel=1e-12)
        assert estimate.forward_passes == (2 * q if sides == "two" else q + 1)
        assert estimate.norm(parameters) == pytest.approx(reference.norm(expected), rel=1e-9)


@pytest.mark.parametrize("family", ["gaussian", "rademacher"])
@pytest.mark.parametrize("part", ["ln_2.weight", "mlp.c_fc.bias", "wte", "h.1.", "bias"])
def test_a_part_of_the_parameters_gives_the_textbook_estimate_too(models, batch, part, family):
    model = models["gpt2-untied"]
    parameters = [p for name, p in model.named_parameters() if part in name]
    noise = Noise(family, SEED, STEP)
    expected, _, _ = textbook(model, parameters, batch.inputs, batch.labels, make_noise(parameters, 3, noise))
    objective = Objective(model, F.cross_entropy, batch.inputs, batch.labels[:, 1:])
    for plan in PLANS[::2]:
        estimate = estimate_gradient(objective, parameters, noise, q=3, epsilon=EPS, plan=plan)
        assert_close(estimate.gradients(parameters), expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_of_one_row_is_not_taken_for_shared_position_ids(models, batch, rows):
    model = models["gpt2-tied"]
    inputs, labels = {"input_ids": batch.ids[:rows]}, batch.ids[:rows]
    parameters = list(model.parameters())
    expected, _, _ = textbook(model, parameters, inputs, labels, make_noise(parameters, 3))
    for chunk in (1, 2, 3):
        grads, _ = call(
            model, batch, inputs=inputs, labels=labels, parallel_q_computation=True, parallel_batch_size=chunk
        )
        assert_close(grads, expected)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("name", ["gpt2-tied", "llama-untied"])
def test_backprop_gives_the_textbook_gradient_at_any_accumulation(models, name, accumulation):
    model = models[name]
    parameters = list(model.parameters())
    blocks = torch.randint(0, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(2))

    inputs, theta = {"input_ids": blocks}, [p.detach() for p in parameters]
    expected = reference.gradient(model, parameters, theta, inputs, blocks)
    loss = reference.language_model_loss(model, inputs, blocks).item()
    value, gradient, passes = backpropagate(
        lambda part: Objective(model, F.cross_entropy, {"input_ids": part[:, :-1]}, part[:, 1:]),
        blocks,
        parameters,
        accumulation,
    )
    assert value == pytest.approx(loss, rel=1e-12)
    assert passes == 1
    assert_close(gradient, expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])  # the latter scales the loss
def test_backprop_in_parts_adds_them_in_order_also_where_two_parameters_have_one_gradient(precision):
    left, right = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    batch = torch.tensor([[0.1, 0.2, 0.3], [0.7, 0.5, 0.9], [0.4, 0.6, 0.8]])

    def objective(part):
        return SimpleNamespace(precision=precision, losses=lambda: ((left + right) * part).sum())

    _, gradient, _ = backpropagate(objective, batch, [left, right], accumulation=3)
    expected = batch[0] / 3 + batch[1] / 3 + batch[2] / 3
    assert_close(gradient, [expected, expected], 1e-6)


def test_cosine_and_norm_are_over_all_parameters_together():
    left, right = (
        [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])],
        [torch.tensor([1.0, 0.0]), torch.tensor([[0.0]])],
    )
    assert dense_norm(left) == 5
    assert cosine(left, right) == pytest.approx(0.6)
    assert cosine(left, [torch.zeros(2), torch.zeros(1, 1)]) == 0


# -- what is applied is what was evaluated ----------------------------------------------------------


def test_the_compact_update_adds_alpha_times_the_dense_gradient(models, batch):
    model = copy.deepcopy(models["llama-tied"])
    parameters = list(model.parameters())
    objective = Objective(model, F.cross_entropy, batch.inputs, batch.labels[:, 1:])
    estimate = estimate_gradient(objective, parameters, Noise("gaussian", SEED, STEP), q=3, epsilon=EPS)
    before, dense = [p.detach().clone() for p in parameters], estimate.gradients(parameters)
    assert estimate.norm(parameters) == pytest.approx(reference.norm(dense), rel=1e-12)
    estimate.add_to_(parameters, alpha=-0.25)
    assert_close(parameters, [old - 0.25 * g for old, g in zip(before, dense, strict=True)], 1e-14)


def test_a_half_precision_update_is_rounded_once_and_keeps_what_its_parts_would_lose():
    """Eight terms, each below half a unit in the last place of the parameter; together they move it."""
    parameter = torch.full((4000,), 1.0, dtype=torch.bfloat16)
    estimate = Estimate(Noise("gaussian", SEED, STEP), torch.full((8,), 8.0, dtype=torch.float64), 0.0, 16)
    noise = make_noise([parameter], 8, Noise("gaussian", SEED, STEP), torch.float32)
    total = sum(z for (z,) in noise)
    torch.testing.assert_close(estimate.gradient(parameter, 0), total, rtol=1e-5, atol=1e-5)
    exact = 1 + 1e-3 * total
    estimate.add_to_([parameter], alpha=1e-3)
    assert (parameter == exact.to(torch.bfloat16)).float().mean() > 0.999  # sums in another order may differ
    assert (parameter != 1).float().mean() > 0.2


def test_the_estimate_in_bf16_points_where_the_one_in_fp64_does(batch):
    """Perturbations are added in fp32 and rounded once. For one seed the cosine is from 0.6 to 0.98."""
    model = build("llama-tied", torch.bfloat16)
    double = copy.deepcopy(model).double()
    parameters, cosines = list(double.parameters()), []
    for seed in range(12):
        grads, _ = call(model, batch, q=8, epsilon=3e-2, seed=seed)
        assert all(g.dtype == torch.bfloat16 for g in grads)
        noise = make_noise(parameters, 8, Noise("gaussian", seed, 0))
        exact, _, _ = textbook(double, parameters, batch.inputs, batch.labels, noise)
        cosines.append(reference.cosine([g.double() for g in grads], exact))
    assert sum(cosines) / 12 > 0.85  # measured 0.89


@pytest.mark.parametrize("name", ["gpt2-tied", "llama-tied"])
def test_under_autocast_both_plans_agree_to_bf16_rounding(models, batch, name):
    model = copy.deepcopy(models[name]).float()
    parameters = list(model.parameters())
    objective = Objective(model, F.cross_entropy, batch.inputs, batch.labels[:, 1:], torch.bfloat16)
    settings = {"q": 8, "epsilon": 3e-2}
    one, two = (
        estimate_gradient(
            objective, parameters, Noise("gaussian", SEED, STEP), plan=plan, **settings
        ).coefficients
        for plan in (Plan("sequential"), Plan("parallel", 3))
    )
    assert reference.cosine([one], [two]) > 0.99


# -- the library entry ------------------------------------------------------------------------------


def test_the_signature_is_the_documented_one():
    parameters = inspect.signature(zo_gradient_estimator).parameters.values()
    assert ", ".join(str(p.replace(annotation=p.empty)) for p in parameters) == (
        "model, trainable_params, loss_fn, inputs, labels, q, epsilon, device, "
        "parallel_q_computation=False, parallel_batch_size=4, seed=None"
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("plan", [(), (True,), (True, 2)])
def test_the_entry_shifts_the_labels_and_gives_the_textbook_estimate(models, batch, name, plan):
    model = models[name]
    parameters = list(model.parameters())
    expected, _, loss = textbook(model, parameters, batch.inputs, batch.labels, make_noise(parameters, 3))
    names = ("parallel_q_computation", "parallel_batch_size")
    grads, mean = call(model, batch, **dict(zip(names, plan, strict=False)))
    assert_close(grads, expected)
    assert isinstance(mean, float)
    assert mean == pytest.approx(loss, rel=1e-12)


def test_inputs_may_be_a_tensor_or_a_dict(models, batch):
    model = models["gpt2-tied"]
    parameters = list(model.parameters())
    expected, _, _ = textbook(
        model, parameters, {"input_ids": batch.ids}, batch.ids, make_noise(parameters, 3)
    )
    for inputs in (batch.ids, {"input_ids": batch.ids}):
        assert_close(call(model, batch, inputs=inputs, labels=batch.ids)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_are_shaped_and_typed_as_the_parameters_and_owned_by_the_caller(batch, dtype):
    model = build("gpt2-tied", dtype)
    grads, _ = call(model, batch)
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert (grad.shape, grad.dtype, grad.device) == (parameter.shape, parameter.dtype, parameter.device)
        assert not grad.requires_grad
    assert len({grad.data_ptr() for grad in grads}) == len(grads)


def test_a_generator_of_parameters_is_accepted(models, batch):
    model = models["gpt2-tied"]
    grads, _ = call(model, batch, parameters=model.parameters())
    assert as_bytes(grads) == as_bytes(call(model, batch)[0])


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
def test_the_same_plan_and_chunk_give_the_same_bytes(models, batch, chunk):
    plan = {"parallel_q_computation": True, "parallel_batch_size": chunk} if chunk else {}
    (one, loss_one), (two, loss_two) = (call(models["llama-tied"], batch, **plan) for _ in range(2))
    assert as_bytes(one) == as_bytes(two)
    assert loss_one == loss_two


# -- randomness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_with_a_seed_every_global_generator_is_untouched(models, batch, global_rng, parallel):
    before = global_rng()
    call(models["gpt2-tied"], batch, seed=3, parallel_q_computation=parallel)
    assert global_rng() == before


@pytest.mark.parametrize("parallel", [False, True])
def test_without_a_seed_exactly_one_number_is_drawn_from_torchs_global_generator(
    models, batch, global_rng, parallel
):
    model = models["gpt2-tied"]
    with torch.random.fork_rng():
        torch.manual_seed(21)
        torch.randint(2**62, ())
        expected = global_rng()
        torch.manual_seed(21)
        first, _ = call(model, batch, seed=None, parallel_q_computation=parallel)
        assert global_rng() == expected
        second, _ = call(model, batch, seed=None, parallel_q_computation=parallel)
        torch.manual_seed(21)
        again, _ = call(model, batch, seed=None, parallel_q_computation=parallel)
    assert as_bytes(first) == as_bytes(again)
    assert as_bytes(first) != as_bytes(second)


def test_different_seeds_give_different_estimates_even_above_32_bits(models, batch):
    seeds = (0, 1, 2**32, 2**32 + 1)
    assert len({as_bytes(call(models["gpt2-tied"], batch, seed=seed)[0])[0] for seed in seeds}) == len(seeds)


# -- the parameters and the memory ------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_a_loss_for_each_token_is_refused_by_name(models, batch, parallel):
    loss_fn = CrossEntropyLoss(reduction="none")
    with pytest.raises(ValueError, match=r"loss_fn returns shape \[\d+\], not one number"):
        call(models["gpt2-tied"], batch, loss_fn=loss_fn, parallel_q_computation=parallel)


class Failure(Exception):
    pass


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2-tied", "llama-untied"])
def test_parameters_are_bit_for_bit_what_they_were_also_when_the_loss_fails(batch, name, dtype, parallel):
    model = build(name, dtype)
    before, output = as_bytes(model.parameters()), model(**batch.inputs).logits
    call(model, batch, parallel_q_computation=parallel)
    assert as_bytes(model.parameters()) == before
    calls = iter(range(100))

    def fail_on_the_fourth(logits, labels):
        if next(calls) == 3:
            raise Failure
        return F.cross_entropy(logits, labels)

    with pytest.raises(Failure):
        call(model, batch, loss_fn=fail_on_the_fourth, parallel_q_computation=parallel, parallel_batch_size=1)
    assert next(calls) == 4
    assert as_bytes(model.parameters()) == before
    assert torch.equal(model(**batch.inputs).logits, output)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def deep_model():
    shape = {"n_embd": 32, "n_layer": 10, "n_head": 2, "n_positions": 8, "vocab_size": 60}
    with torch.random.fork_rng():
        return GPT2LMHeadModel(GPT2Config(use_cache=False, **shape)).eval()


def test_the_memory_count_sees_a_copy_of_the_parameters():
    model = deep_model()
    size = sum(p.numel() * 4 for p in model.parameters())
    with LiveBytes() as memory:
        copies = [p.detach().clone() for p in model.parameters()]
    assert memory.peak == size == sum(c.numel() * 4 for c in copies)
    del copies
    assert memory.live == 0


def test_backprop_takes_the_memory_of_torchs_own_and_gives_the_same_bits():
    """What the trainer added would be held against FO."""
    model = deep_model()
    parameters, ids = list(model.parameters()), torch.arange(14).view(2, 7)

    def objective(part):
        return Objective(model, F.cross_entropy, {"input_ids": part}, part)

    with LiveBytes() as plain:
        expected = torch.autograd.grad(objective(ids).losses().sum(), parameters)
    with LiveBytes() as memory:
        _, gradient, _ = backpropagate(objective, ids, parameters)
    assert memory.peak <= plain.peak + 1000
    assert plain.peak > sum(p.numel() * 4 for p in parameters)
    assert all(torch.equal(ours, torchs) for ours, torchs in zip(gradient, expected, strict=True))


@pytest.mark.parametrize("family", ["gaussian", "rademacher"])
@pytest.mark.parametrize(("plan", "signs"), [(Plan("sequential"), 1), (Plan("parallel", 1), 2)])
def test_evaluating_takes_a_block_of_perturbed_rows_for_each_sign_and_the_update_nothing(
    monkeypatch, plan, signs, family
):
    model = deep_model()
    parameters = list(model.parameters())
    sizes = [p.numel() * 4 for p in parameters]
    block = max(sizes) // 4
    monkeypatch.setitem(directions._BLOCK, "cpu", block // 4)
    ids = torch.zeros(1, 2, dtype=torch.long)
    objective = Objective(model, F.cross_entropy, {"input_ids": ids}, ids)
    with torch.no_grad(), LiveBytes() as plain:
        objective.losses(torch.zeros(signs, 1, dtype=torch.long))
    noise = Noise(family, 0, 0)
    with LiveBytes() as memory:
        estimate = estimate_gradient(objective, parameters, noise, q=4, epsilon=EPS, plan=plan)
    assert memory.peak <= signs * block + 2 * plain.peak
    assert signs * block < max(sizes)  # not even one layer's noise
    with LiveBytes() as memory:
        estimate.add_to_(parameters, alpha=-1e-3)
    assert memory.peak < 1000


# -- models that the parallel plan cannot split -----------------------------------------------------


class Unusual(torch.nn.Module):
    """Uses its parameters in ways that make views of them or none of the known operations."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        shapes = {"table": (VOCABULARY, 8), "norm": (8,), "left": (8, 8), "right": (8, 8), "scalar": ()}
        for name, shape in shapes.items():
            value = 0.5 * torch.randn(shape, generator=draw, dtype=torch.float64)
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, input_ids):
        left, right = self.left.t(), self.right.t()  # two views alive at the same time
        first, second = torch.cat([self.left, self.right]).chunk(2)
        x = F.embedding(input_ids, self.table) * (1 + self.norm)
        x = torch.tanh(x @ left @ right + x @ first + x @ second) * self.scalar
        return SimpleNamespace(logits=F.linear(x + self.table[input_ids], self.table))


def test_a_model_that_members_cannot_share_gets_one_warning_and_the_right_sequential_result(batch):
    model = Unusual()
    parameters = list(model.parameters())
    inputs = {"input_ids": batch.ids}
    expected, _, _ = textbook(model, parameters, inputs, batch.labels, make_noise(parameters, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        grads, _ = call(model, batch, inputs=batch.ids, parallel_q_computation=True)
    assert len(caught) == 1
    assert "Unusual uses a trained parameter in 't'" in str(caught[0].message)
    assert "sequential plan" in str(caught[0].message)
    assert_close(grads, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(call(model, batch, inputs=batch.ids)[0], expected)


def test_gemma_2_falls_back_to_the_sequential_plan_with_a_warning_that_names_the_operation(batch):
    """Its norms multiply by 1 + weight. They compute in fp32, so agreement is fp32's over eps."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 8, "attn_implementation": "eager", "use_cache": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(Gemma2Config(vocab_size=VOCABULARY, **shape, **heads)).double().eval()
    parameters = list(model.parameters())
    with pytest.warns(UserWarning, match="Gemma2ForCausalLM uses a trained parameter in 'float'") as caught:
        grads, _ = call(model, batch, parallel_q_computation=True)
    assert len(caught) == 1
    expected, _, _ = textbook(model, parameters, batch.inputs, batch.labels, make_noise(parameters, 3))
    difference = [a - b for a, b in zip(grads, expected, strict=True)]
    assert reference.norm(difference) < 1e-2 * reference.norm(expected)


# -- bad arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q": 0}, "q=0 is not allowed"),
        ({"q": -2}, "q=-2 is not allowed"),
        ({"epsilon": 0.0}, r"epsilon=0\.0 is not allowed"),
        ({"epsilon": -1e-3}, r"epsilon=-0\.001 is not allowed"),
        ({"epsilon": float("nan")}, "epsilon=nan is not allowed"),
        ({"parallel_batch_size": 0}, "parallel_batch_size=0 is not allowed"),
        ({"parameters": []}, "trainable_params is empty"),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(models, batch, options, message):
    with pytest.raises(ValueError, match=message):
        call(models["gpt2-tied"], batch, **options)


def test_a_seed_of_numpys_is_as_good_and_one_that_is_no_whole_number_an_error(models, batch):
    model = models["gpt2-tied"]
    seeds = [np.int64(7), np.uint32(7), torch.tensor(7)]
    wanted = as_bytes(call(model, batch, seed=7)[0])
    assert all(as_bytes(call(model, batch, seed=seed)[0]) == wanted for seed in seeds)
    with pytest.raises(TypeError, match="integer"):
        call(model, batch, seed=7.5)


@pytest.mark.parametrize("parallel", [False, True])
def test_parameters_need_not_be_contiguous(models, batch, parallel):
    model = copy.deepcopy(models["gpt2-tied"])
    options = {"parallel_q_computation": parallel}
    wanted, _ = call(model, batch, **options)
    parameters = list(model.parameters())
    noise = Noise("gaussian", SEED, 0)
    moved = [p.detach().clone() for p in parameters]
    noise.update_(moved, 0.1, [1.0, -2.0])
    for p in parameters:
        if p.ndim == 2:
            p.data = p.data.t().contiguous().t()
    assert not all(p.is_contiguous() for p in parameters)
    grads, _ = call(model, batch, **options)
    assert_close(grads, wanted)
    with torch.no_grad():
        noise.update_(parameters, 0.1, [1.0, -2.0])
    assert_close(parameters, moved)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_model_whose_parameters_cannot_be_seen_is_an_error_not_a_gradient_of_noise(models, parallel):
    """The engine answers the calls of functions on parameters: a traced module makes none."""
    model = Bigrams()
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    traced = torch.jit.trace(model, (ids,), strict=False)
    arguments = (list(model.parameters()), CrossEntropyLoss(), {"input_ids": ids}, ids, 2, EPS, "cpu")
    with pytest.raises(ValueError, match="uses none of the parameters"):
        zo_gradient_estimator(Answer(traced), *arguments, parallel_q_computation=parallel, seed=0)
    with pytest.raises(ValueError, match=r"give model\._orig_mod"):
        zo_gradient_estimator(torch.compile(model), *arguments, parallel_q_computation=parallel, seed=0)


def test_parameters_that_the_model_does_not_use_are_named_once(batch):
    model = Bigrams()
    model.idle = torch.nn.Parameter(torch.ones(3))
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    parameters = [model.table.weight, model.idle, model.head.weight]
    arguments = (parameters, CrossEntropyLoss(), {"input_ids": ids}, ids, 2, EPS, "cpu")
    answer = Answer(model)
    with pytest.warns(UserWarning, match="does not use the parameters at places 1 in"):
        zo_gradient_estimator(answer, *arguments, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zo_gradient_estimator(answer, *arguments, seed=0)


def test_a_parameter_listed_twice_is_an_error(models, batch):
    weight = models["gpt2-tied"].lm_head.weight
    with pytest.raises(ValueError, match="twice"):
        call(models["gpt2-tied"], batch, parameters=[weight, weight])


def test_a_bad_argument_does_not_draw_from_the_global_generator(models, batch, global_rng):
    before = global_rng()
    with pytest.raises(ValueError, match="q=0"):
        call(models["gpt2-tied"], batch, q=0, seed=None)
    assert global_rng() == before
