"""Common causal language models, unmodified: every member's loss is that of its own dense weights."""

import itertools
import warnings
from types import SimpleNamespace

import pytest
import reference
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM

from zo.engine.estimate import estimate_gradient
from zo.engine.noise import make_noise
from zo.engine.objective import Objective
from zo.engine.plan import Plan

VOCABULARY, BATCH, LENGTH, Q, SEED, STEP = 50, 2, 7, 3, 11, 5
EPS = 1e-2  # spreads the members' losses over hundreds of tolerances
SHAPE = {"vocab_size": VOCABULARY, "use_cache": False}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
NO_DROPOUT = {
    "gpt2": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "opt": {"dropout": 0.0},
    "gpt_neox": {"attention_dropout": 0.0, "hidden_dropout": 0.0},
}
CONFIGS = {
    "gpt2": (transformers.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}),
    "llama": (transformers.LlamaConfig, LAYERS | {"intermediate_size": 24}),
    "llama-biases": (
        transformers.LlamaConfig,
        LAYERS
        | {"intermediate_size": 24, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    ),
    "opt": (transformers.OPTConfig, LAYERS | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "opt-projected": (transformers.OPTConfig, LAYERS | {"ffn_dim": 24, "word_embed_proj_dim": 8}),
    "gpt_neox": (transformers.GPTNeoXConfig, LAYERS | {"intermediate_size": 24}),
    "qwen3": (
        transformers.Qwen3Config,
        LAYERS | {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8},
    ),
}
MODELS = list(itertools.product(CONFIGS, [True, False]))
FAMILIES = [("gaussian", 1), ("rademacher", 1), ("lowrank", 1), ("lowrank", 2)]
CHUNKS = [1, 2, 3, 8]


def exact_norm(norm, x):
    """Transformers' RMSNorm computes in fp32 also in an fp64 model, which would hide all below 1e-7."""
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


def build(name, tied, dtype=torch.float32, scale=0.1):
    """A tiny model whose norms and biases are no longer at 1 and 0, where mistakes could hide."""
    kind, shape = CONFIGS[name]
    options = SHAPE | shape | NO_DROPOUT.get(name.split("-")[0], {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kind(tie_word_embeddings=tied, **options)).eval()
        for parameter in model.parameters():
            parameter.data += scale * torch.randn_like(parameter)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = exact_norm.__get__(module)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    return model.to(dtype)


def make_batch(rows=BATCH):
    ids = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return SimpleNamespace(
        inputs={"input_ids": ids, "attention_mask": mask}, labels=ids.masked_fill(mask == 0, -100)
    )


def member_losses(model, noise, plan, sides="two", q=Q, sharded=False, batch=None, epsilon=EPS):
    """The losses in the order in which they were taken: of each query and sign, then the base."""
    batch, losses = batch or make_batch(), []

    def loss_fn(logits, labels):
        losses.append(F.cross_entropy(logits, labels))
        return losses[-1]

    objective = Objective(model, loss_fn, batch.inputs, batch.labels[:, 1:])
    estimate = estimate_gradient(
        objective,
        list(model.parameters()),
        noise,
        q=q,
        epsilon=epsilon,
        sides=sides,
        sharded=sharded,
        plan=plan,
    )
    return torch.stack(losses).double().tolist(), estimate


@torch.no_grad()
def dense_losses(model, noise, sides="two", q=Q, sharded=False, batch=None):
    """The same of models that hold the perturbed weights, noise added in fp64 and rounded once."""
    parameters, batch, losses = list(model.parameters()), batch or make_batch(), []
    rows = torch.arange(len(batch.labels)).view(q, -1) if sharded else [slice(None)] * q
    for query in range(q):
        z = [noise.fill_(torch.empty_like(p), query, i).double() for i, p in enumerate(parameters)]
        for sign in (1, -1) if sides == "two" else (1,):
            theta = [(p + sign * EPS * part).to(p.dtype) for p, part in zip(parameters, z, strict=True)]
            clone, _ = reference.write_weights(model, parameters, theta)
            inputs = {name: value[rows[query]] for name, value in batch.inputs.items()}
            losses.append(reference.language_model_loss(clone, inputs, batch.labels[rows[query]]).item())
    return losses


@pytest.mark.parametrize(("family", "rank"), FAMILIES)
@pytest.mark.parametrize(("name", "tied"), MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_each_members_loss_is_its_dense_weights_loss_in_every_chunk(
    name, tied, family, rank, dtype, tolerance
):
    model = build(name, tied, dtype)
    noise = make_noise(family, SEED, STEP, list(model.parameters()), rank)
    expected = dense_losses(model, noise)
    assert max(expected) - min(expected) > 100 * tolerance * expected[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fall-back to the sequential plan
        for plan in [Plan("sequential"), *(Plan("parallel", chunk) for chunk in CHUNKS)]:
            losses, _ = member_losses(model, noise, plan)
            assert losses == pytest.approx(expected, rel=tolerance), plan


@pytest.mark.parametrize("part", ["bias", "norm", "embed", "lm_head", "layers.1.", "mlp", "ln_"])
@pytest.mark.parametrize("name", ["gpt2", "llama-biases", "gpt_neox"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_part_of_the_parameters_is_perturbed_alone(name, part, rank):
    """A weight without its bias, a bias without its weight, neither: each takes a way of its own."""
    model = build(name, tied=False, dtype=torch.float64)
    parameters = [p for key, p in model.named_parameters() if part in key]
    if not parameters:
        pytest.skip("no such part")
    noise, batch = make_noise("lowrank", SEED, STEP, parameters, rank), make_batch()
    objective = Objective(model, F.cross_entropy, batch.inputs, batch.labels[:, 1:])
    z = [[noise.fill_(torch.empty_like(p), i, j) for j, p in enumerate(parameters)] for i in range(Q)]

    def loss(theta):
        clone, _ = reference.write_weights(model, parameters, theta)
        return reference.language_model_loss(clone, batch.inputs, batch.labels)

    with torch.no_grad():
        expected, coefficients, _ = reference.estimate(loss, [p.detach() for p in parameters], z, EPS)
    for plan in (Plan("sequential"), Plan("parallel", 2), Plan("parallel", 3)):
        found = estimate_gradient(objective, parameters, noise, q=Q, epsilon=EPS, plan=plan)
        assert found.coefficients.tolist() == pytest.approx(coefficients, rel=1e-9, abs=1e-10)
        for one, other in zip(found.gradients(parameters), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


class UsedTwice(torch.nn.Module):
    """Both results of one weight are alive together."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, 8)
        self.head = torch.nn.Linear(8, VOCABULARY)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids)
        first, second = self.head(x), self.head(torch.tanh(x))
        return SimpleNamespace(logits=first + 2 * torch.sin(second))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "used twice"])
def test_outputs_kept_from_pass_to_pass_hold_each_members_own_results(monkeypatch, name, rank):
    """Large outputs are written where the last pass wrote them; here every output counts as large."""
    monkeypatch.setattr("zo.engine.scratch.LARGE", 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UsedTwice().double() if name == "used twice" else build(name, True, torch.float64)
    noise = make_noise("lowrank", SEED, STEP, list(model.parameters()), rank)
    expected = dense_losses(model, noise)
    for chunk in CHUNKS:  # 2: the last pass is smaller than the one before
        assert member_losses(model, noise, Plan("parallel", chunk))[0] == pytest.approx(expected, rel=1e-10)


# -- one-sided and sharded --------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "rank"), FAMILIES)
@pytest.mark.parametrize("sides", ["two", "one"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_sides_and_shards_agree_with_the_textbook(name, sides, sharded, family, rank):
    """With shards, direction i is evaluated on sequences i b ... (i + 1) b - 1 alone, and so is its base."""
    model, q = build(name, tied=True, dtype=torch.float64), 3
    batch, parameters = make_batch(rows=6), list(model.parameters())
    noise = make_noise(family, SEED, STEP, parameters, rank)
    expected = dense_losses(model, noise, sides, q, sharded, batch)
    rows = torch.arange(6).view(q, -1) if sharded else torch.arange(6).expand(q, -1)
    with torch.no_grad():
        base = [
            reference.language_model_loss(
                model, {key: value[own] for key, value in batch.inputs.items()}, batch.labels[own]
            ).item()
            for own in rows
        ]
    if sides == "two":
        coefficients = [(expected[2 * i] - expected[2 * i + 1]) / (2 * EPS) for i in range(q)]
        mean, passes = sum(expected) / len(expected), 2 if sharded else 2 * q
    else:
        coefficients = [(plus - minus) / EPS for plus, minus in zip(expected, base, strict=True)]
        evaluated = expected + (base if sharded else base[:1])
        mean, passes = sum(evaluated) / len(evaluated), 2 if sharded else q + 1
    for plan in [Plan("sequential"), *(Plan("parallel", chunk) for chunk in CHUNKS)]:
        losses, found = member_losses(model, noise, plan, sides, q, sharded, batch)
        assert losses[: len(expected)] == pytest.approx(expected, rel=1e-10)
        assert found.coefficients.tolist() == pytest.approx(coefficients, rel=1e-8, abs=1e-9)
        assert found.loss == pytest.approx(mean, rel=1e-10)
        assert found.forward_passes == passes


@pytest.mark.parametrize("kind", ["sequential", "parallel"])
def test_a_batch_that_does_not_divide_among_its_directions_is_an_error(kind):
    model = build("gpt2", tied=True)
    noise = make_noise("lowrank", SEED, STEP, list(model.parameters()))
    with pytest.raises(ValueError, match="6 sequences cannot be split among 4 directions"):
        member_losses(model, noise, Plan(kind, 2), q=4, sharded=True, batch=make_batch(rows=6))


def test_a_sharded_pass_reads_each_sequence_once_a_sign():
    model, batch, seen = build("gpt2", tied=True), make_batch(rows=8), []
    noise = make_noise("lowrank", SEED, STEP, list(model.parameters()))
    member_losses(model, noise, Plan("parallel", 8), batch=batch)  # the model is tried: zo/engine/sharing.py
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    member_losses(model, noise, Plan("parallel", 8), q=8, sharded=True, batch=batch)
    assert len(seen) == 1  # q = batch size: two plain forward passes in one
    assert torch.equal(seen[0], batch.inputs["input_ids"].repeat_interleave(2, dim=0))


# -- models that the parallel plan cannot split -----------------------------------------------------


def gemma2():
    heads = {"num_key_value_heads": 1, "head_dim": 8, "attn_implementation": "eager"}
    return transformers.Gemma2Config(**SHAPE, **LAYERS, intermediate_size=24, **heads)


def mamba():
    return transformers.MambaConfig(
        **SHAPE, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2, residual_in_fp32=False
    )


@pytest.mark.parametrize(("make", "operation"), [(gemma2, "float"), (mamba, "float")])
@pytest.mark.parametrize(("family", "rank"), FAMILIES)
def test_a_model_of_other_operations_gets_one_warning_the_sequential_plan_and_the_right_result(
    monkeypatch, make, operation, family, rank
):
    monkeypatch.setattr("zo.engine.estimate._unsupported", set())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(make()).eval()
    noise = make_noise(family, SEED, STEP, list(model.parameters()), rank)
    batch = make_batch()
    if make is mamba:
        batch.inputs.pop("attention_mask")
    name = type(model).__name__
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses, _ = member_losses(model, noise, Plan("parallel", 2), batch=batch)
        again, _ = member_losses(model, noise, Plan("parallel", 2), batch=batch)
    messages = [str(w.message) for w in caught if "trained parameter" in str(w.message)]
    assert len(messages) == 1
    assert messages[0].startswith(f"{name} uses a trained parameter in '{operation}'")
    assert "sequential plan" in messages[0]
    assert losses == again
    assert losses == pytest.approx(dense_losses(model, noise, batch=batch), rel=1e-5)


class Odd(torch.nn.Module):
    """A language model that uses its batch in one more way: ``mix`` of the embedded tokens [n, T, d]."""

    def __init__(self, mix):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 16)
        self.layer, self.head = torch.nn.Linear(16, 16), torch.nn.Linear(16, VOCABULARY)
        self.register_buffer("positions", torch.randn(LENGTH + 1, 16))
        self.mix = mix

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.head(torch.tanh(self.mix(self, self.embedding(input_ids)))))


def transpose(model, x):
    n, t, d = x.shape
    return model.layer(x.transpose(0, 1).reshape(t * n, d)).view(t, n, d).transpose(0, 1)


def sort(model, x):
    order = x.flatten(0, 1)[:, 0].argsort()
    return model.layer(x.flatten(0, 1)[order])[order.argsort()].view(x.shape)


ODD = {
    "a table through a layer of its own": lambda m, x: x + m.layer(m.positions)[: x.shape[1]],
    "tokens before sequences": transpose,
    "tokens in another order": sort,
    "statistics over the batch": lambda m, x: m.layer(x - x.mean(0)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mix", ODD)
def test_a_model_that_does_not_keep_its_sequences_apart_gets_the_sequential_plan(mix, training):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Odd(ODD[mix]).train(training)
    noise, batch = make_noise("gaussian", SEED, STEP, list(model.parameters())), make_batch()
    with pytest.warns(UserWarning, match="Odd does not keep the sequences of a batch apart"):
        losses, _ = member_losses(model, noise, Plan("parallel", 2), batch=batch)
    assert losses == pytest.approx(dense_losses(model, noise, batch=batch), rel=1e-5)


def test_a_model_that_drops_out_is_tried_without_and_left_in_its_mode():
    """In training mode no two of its passes are alike, whether its sequences are kept apart or not."""
    model, modes = Odd(lambda model, x: model.drop(model.layer(x))), []
    model.drop, model.layer.training = torch.nn.Dropout(0.5), False
    model.register_forward_pre_hook(lambda *_: modes.append(model.drop.training))
    noise = make_noise("gaussian", SEED, STEP, list(model.parameters()))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("error")
        member_losses(model, noise, Plan("parallel", Q))
    assert modes == [False, False, False, True]
    assert model.training
    assert not model.layer.training


def test_a_logit_that_is_no_number_hides_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Odd(ODD["statistics over the batch"])
    model.head.bias.data[3] = torch.nan
    noise = make_noise("gaussian", SEED, STEP, list(model.parameters()))
    with pytest.warns(UserWarning, match="Odd does not keep the sequences of a batch apart"):
        member_losses(model, noise, Plan("parallel", 2))


def test_a_trial_without_a_number_is_made_again():
    model = Odd(ODD["statistics over the batch"])
    noise = make_noise("gaussian", SEED, STEP, list(model.parameters()))
    good = model.head.bias.data.clone()
    model.head.bias.data.fill_(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        member_losses(model, noise, Plan("parallel", 2))
    model.head.bias.data.copy_(good)
    with pytest.warns(UserWarning, match="Odd does not keep the sequences of a batch apart"):
        member_losses(model, noise, Plan("parallel", 2))


def test_a_model_is_tried_once_and_the_trial_leaves_the_global_generator_alone():
    model, passes = build("gpt2", tied=True), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    noise, before = make_noise("gaussian", SEED, STEP, list(model.parameters())), torch.get_rng_state()
    for expected in (3 + 1, 3 + 2):
        member_losses(model, noise, Plan("parallel", Q))
        assert len(passes) == expected
    assert torch.equal(torch.get_rng_state(), before)
