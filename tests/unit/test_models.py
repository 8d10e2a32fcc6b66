"""Sizes, seeded initialisation and scopes: what is built, what is trained, and that nothing else moves."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from zo.errors import UserError
from zo.models import build_model, count_parameters, model_config, parameter_roles, select_scope
from zo.sizes import (
    ARCHITECTURES,
    DEFAULT_VOCABULARY,
    SIZES,
    max_positions,
    parse_scope,
    validate_scope,
)

NOMINAL = {"100k": 1e5, "1M": 1e6, "20M-32k": 2e7, "20M": 2e7, "200M": 2e8, "500M": 5e8, "1B": 1e9}
ALL_SCOPES = ("full", "reduced", "head", "norms", "block0", "embedding")

LN_1, LN_2 = (["ln_1.weight", "ln_1.bias"], ["ln_2.weight", "ln_2.bias"])
GPT2_MLP = ["mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
GPT2_ATTENTION = ["attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"]
GPT2_NORMS = [f"h.{i}.{name}" for i in (0, 1) for name in LN_1 + LN_2] + ["ln_f.weight", "ln_f.bias"]
LLAMA_MLP = ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
LLAMA_ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
LLAMA_BLOCK_NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
LLAMA_NORMS = [f"layers.{i}.{name}" for i in (0, 1) for name in LLAMA_BLOCK_NORMS] + ["norm.weight"]
SCOPE_NAMES = {
    ("gpt2", "head"): ["lm_head.weight"],
    ("gpt2", "norms"): [f"transformer.{name}" for name in GPT2_NORMS],
    ("gpt2", "block0"): [f"transformer.h.0.{name}" for name in LN_1 + GPT2_ATTENTION + LN_2 + GPT2_MLP],
    ("gpt2", "reduced"): [*(f"transformer.h.1.{name}" for name in LN_2 + GPT2_MLP), "lm_head.weight"],
    ("llama", "head"): ["lm_head.weight"],
    ("llama", "norms"): [f"model.{name}" for name in LLAMA_NORMS],
    ("llama", "block0"): [
        f"model.layers.0.{name}" for name in LLAMA_ATTENTION + LLAMA_MLP + LLAMA_BLOCK_NORMS
    ],
    ("llama", "reduced"): [
        *(f"model.layers.1.{name}" for name in [*LLAMA_MLP, "post_attention_layernorm.weight"]),
        "lm_head.weight",
    ],
}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


def build(architecture, seed=0, **options):
    return build_model("100k", architecture, 512, seed, **options)


def tokens(length=32):
    return torch.randint(0, 512, (2, length), generator=torch.Generator().manual_seed(0))


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count_is_within_five_percent_of_the_name(size, architecture):
    count = count_parameters(size, architecture, DEFAULT_VOCABULARY[size])
    assert abs(count / NOMINAL[size] - 1) < 0.05


def test_large_sizes_count_at_the_gpt2_vocabulary():
    assert [DEFAULT_VOCABULARY[size] for size in ("20M", "200M", "500M", "1B")] == [50257] * 4


def test_the_papers_size_has_half_of_its_parameters_in_the_embedding(architecture):
    without, with_one = (count_parameters("20M-32k", architecture, size) for size in (31_999, 32_000))
    assert 32_000 * (with_one - without) == 10_240_000
    assert DEFAULT_VOCABULARY["20M-32k"] == 32_000


@pytest.mark.parametrize("size", SIZES)
def test_shapes_are_sane(size, architecture):
    config = model_config(size, architecture, DEFAULT_VOCABULARY[size])
    assert config.max_position_embeddings == max_positions(size, architecture)
    head_width, remainder = divmod(config.hidden_size, config.num_attention_heads)
    assert remainder == 0
    assert head_width == 64 if max_positions(size, architecture) == 1024 else head_width >= 16


def test_counting_on_meta_agrees_with_the_model_built(architecture):
    built = sum(parameter.numel() for parameter in build(architecture).parameters())
    assert count_parameters("100k", architecture, 512) == built


def test_unknown_size_and_architecture_name_what_is_allowed():
    with pytest.raises(UserError, match="did you mean '20M'"):
        max_positions("20m", "gpt2")
    with pytest.raises(UserError, match="allowed: gpt2, llama"):
        max_positions("20M", "gpt3")


# -- building -------------------------------------------------------------------------------------


def test_same_seed_same_weights_and_another_seed_others(architecture):
    first, second, *others = (build(architecture, seed).state_dict() for seed in (3, 3, 4, 3 + 2**32))
    assert all(torch.equal(first[name], second[name]) for name in first)
    embedding = next(name for name in first if name.endswith(("wte.weight", "embed_tokens.weight")))
    assert not any(torch.equal(first[embedding], other[embedding]) for other in others)


def test_building_neither_reads_nor_moves_a_global_generator(architecture):
    reference = build(architecture).state_dict()
    torch.manual_seed(99)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    weights = build(architecture).state_dict()
    count_parameters("100k", architecture, 512)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(torch.equal(weights[name], reference[name]) for name in weights)


def test_initial_weights_do_not_depend_on_the_scope(architecture):
    reference = build(architecture).state_dict()
    for scope in ALL_SCOPES:
        model = build(architecture)
        select_scope(model, scope)
        assert all(torch.equal(value, reference[name]) for name, value in model.state_dict().items())


def test_train_and_eval_are_the_same_function(architecture):
    model = build(architecture)
    assert model.training
    assert torch.equal(model(tokens()).logits, model.eval()(tokens()).logits)


def test_the_longest_context_fits_and_no_cache_is_kept(architecture):
    output = build(architecture)(tokens(max_positions("100k", architecture)))
    assert output.logits.shape == (2, 256, 512)
    assert output.past_key_values is None


def test_bf16_rounds_the_fp32_weights_but_not_the_rotary_frequencies(architecture):
    exact, rounded = build(architecture), build(architecture, dtype=torch.bfloat16)
    for (name, expected), parameter in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(parameter, expected.bfloat16()), name
    for (name, expected), buffer in zip(exact.named_buffers(), rounded.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert rounded(tokens()).logits.dtype == torch.bfloat16


def test_gradient_checkpointing_recomputes_each_block_and_changes_no_bit(architecture):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model, counted = build(architecture, gradient_checkpointing=checkpointing), []
        for name, module in model.named_modules():
            if name.endswith(".mlp"):
                module.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        calls.append(len(counted))
    assert calls == [2, 4]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_importing_and_validating_needs_no_transformers_and_building_prints_nothing():
    code = """
import sys
from zo.models import build_model
from zo.sizes import max_positions, validate_scope
max_positions("1B", "llama"), validate_scope("block3", "1M", "gpt2")
assert "transformers" not in sys.modules
import torch
ids = torch.arange(8)[None]
for architecture in ("gpt2", "llama"):
    model = build_model("100k", architecture, 512, 0, gradient_checkpointing=True)
    model(input_ids=ids, labels=ids).loss.backward()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- scopes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "expected"), SCOPE_NAMES.items(), ids="-".join)
def test_a_scope_trains_exactly_its_parameters(key, expected):
    model = build(key[0])
    named = select_scope(model, key[1])
    assert [name for name, _ in named] == expected
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == expected
    assert all(model.get_parameter(name) is parameter for name, parameter in named)


def test_full_lists_a_tied_head_once_as_the_embedding(architecture):
    model = build(architecture)
    named = select_scope(model, "full")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in dict(named)
    assert sum(parameter.numel() for _, parameter in named) == count_parameters("100k", architecture, 512)


def test_another_scope_replaces_the_one_before(architecture):
    model = build(architecture)
    select_scope(model, "full")
    named = select_scope(model, "norms")
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        name for name, _ in named
    ]


@pytest.mark.parametrize("scope", ["head", "reduced"])
def test_training_an_untied_head_leaves_the_embedding_alone(scope, architecture):
    model = build(architecture)
    logits, embedding = model(tokens()).logits, model.get_input_embeddings().weight
    before = embedding.detach().clone()
    named = select_scope(model, scope)
    head = model.get_output_embeddings().weight
    assert torch.equal(model(tokens()).logits, logits)
    assert head.data_ptr() != embedding.data_ptr()
    assert not model.config.tie_word_embeddings
    model(tokens(), labels=tokens()).loss.backward()
    torch.optim.SGD([parameter for _, parameter in named], lr=1.0).step()
    for recompute in (True, False):  # what transformers calls when it loads: must not tie them again
        model.tie_weights(recompute_mapping=recompute)
    assert model.get_output_embeddings().weight is head
    assert torch.equal(embedding, before)
    assert embedding.grad is None
    assert not torch.equal(head, before)


@pytest.mark.parametrize("scope", ["norms", "block1", "full"])
def test_a_scope_that_does_not_single_out_the_head_keeps_the_tie(scope, architecture):
    model = build(architecture)
    select_scope(model, scope)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("text", ["Full", "block", "block-1", "block03", "block1 ", "mlp", ""])
def test_an_unknown_scope_names_the_allowed_ones(text):
    with pytest.raises(UserError, match="allowed: full, reduced, head, norms, block<i>"):
        parse_scope(text)


def test_a_block_out_of_range_names_the_blocks(architecture):
    validate_scope("block1", "100k", architecture)
    for check in (
        lambda: validate_scope("block2", "100k", architecture),
        lambda: select_scope(build(architecture), "block2"),
    ):
        with pytest.raises(UserError, match="block0 to block1"):
            check()


# -- roles ----------------------------------------------------------------------------------------


def test_roles_of_a_tied_model(architecture):
    model = build(architecture)
    roles = parameter_roles(model, select_scope(model, "full"))
    embeddings = {
        "gpt2": ["transformer.wte.weight", "transformer.wpe.weight"],
        "llama": ["model.embed_tokens.weight"],
    }
    assert [name for name, role in roles.items() if role == "embedding"] == embeddings[architecture]
    for name, role in roles.items():
        if role != "embedding":
            assert role == ("vector" if model.get_parameter(name).ndim == 1 else "hidden")


def test_an_untied_head_has_its_own_role(architecture):
    model = build(architecture)
    roles = parameter_roles(model, select_scope(model, "reduced"))
    assert roles["lm_head.weight"] == "head"
    assert set(roles.values()) == {"head", "hidden", "vector"}


# -- other causal language models -----------------------------------------------------------------


def build_foreign(name):
    import transformers

    common = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    match name:
        case "opt":
            config = transformers.OPTConfig(**common, ffn_dim=32, word_embed_proj_dim=16)
        case "gpt_neox":
            config = transformers.GPTNeoXConfig(**common, intermediate_size=32)
        case "qwen3":
            config = transformers.Qwen3Config(
                **common, intermediate_size=32, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True
            )
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("name", "norm", "mlp_parts"),
    [
        ("opt", "final_layer_norm", {"fc1", "fc2"}),
        ("gpt_neox", "post_attention_layernorm", {"mlp"}),
        ("qwen3", "post_attention_layernorm", {"mlp"}),
    ],
)
def test_reduced_finds_its_parts_by_structure_in_other_architectures(name, norm, mlp_parts):
    model = build_foreign(name)
    named = select_scope(model, "reduced")
    inside = {key.split(".layers.1.")[1].split(".")[0] for key, _ in named if ".layers.1." in key}
    assert inside == {norm} | mlp_parts
    assert [key for key, _ in named if ".layers.1." not in key] == ["lm_head.weight"]
