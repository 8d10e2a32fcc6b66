"""A run's name and its spec are one and the same, and a bad setting is one line that says what is allowed."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo.errors import UserError
from zo.lengths import LENGTHS, total_steps
from zo.methods import METHODS
from zo.sizes import ARCHITECTURES, SIZES
from zo.spec import AXES, SUFFIXES, RunSpec, format_number, parse_name, uses
from zo.training.record import RunFiles

POSITIVE = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
STEPS = 33  # one for each block of the largest model, and 9 for its embedding
LEARNING_RATES = st.one_of(st.sampled_from([1e-5, 1e-4, 2.5e-4, 1.0, 1e10]), POSITIVE)
VALUES = {
    "mode": st.sampled_from(list(METHODS)),
    "scope": st.sampled_from(["full", "reduced", "head", "norms", "block0", "block1", "embedding"]),
    "batch_size": st.integers(1, 99).map(lambda n: 12 * n),  # gradient_accumulation divides it
    "query_budget_q": st.sampled_from([1, 2, 3, 4, 6, 12]),  # shard_batch splits the batch by it
    "learning_rate": LEARNING_RATES,
    "optimizer": st.sampled_from(["sgd", "adam", "adamw", "muon", "mudamw"]),
    "momentum": st.floats(0, 1, exclude_max=True),
    "weight_decay": st.floats(0, 1e3),
    "cautious": st.booleans(),
    "schedule": st.sampled_from(["constant", "cosine"]),
    "warmup_steps": st.integers(0, 999),
    "epsilon": POSITIVE,
    "direction_family": st.sampled_from(["gaussian", "rademacher", "lowrank"]),
    "rank": st.integers(1, 9),
    "shard_batch": st.booleans(),
    "sides": st.sampled_from(["one", "two"]),
    "bp_interval": st.integers(1, 999),
    "bp_learning_rate": st.none() | LEARNING_RATES,
    "embedding_parts": st.integers(1, 9),
    "cosine_target": st.floats(0, 1, exclude_min=True),
    "blend_bp_gradient": st.booleans(),
    "gradient_accumulation": st.sampled_from([1, 2, 3, 4]),
    "gradient_checkpointing": st.booleans(),
    "seed": st.integers(0, 2**53 - 1),
    "model_size": st.sampled_from(SIZES),
    "architecture": st.sampled_from(ARCHITECTURES),
    "block_size": st.integers(1, 256),
    "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "weights": st.sampled_from(["fp32", "bf16", "bf16-nearest"]),
    "ranks": st.integers(1, 12),
}


def make(**cell) -> RunSpec:
    """Make a spec, without the knobs that its method, optimizer, directions or weights' type have not."""
    cell |= {"scope": METHODS[cell["mode"]].only_scope or cell["scope"]}
    if cell["weights"] != "fp32":
        cell |= {"precision": "bf16", "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    unfit = {"momentum"} if cell["optimizer"] not in ("sgd", "muon") else set()
    unfit |= {"cautious"} if cell["optimizer"] != "mudamw" else set()
    unfit |= {"rank"} if cell["direction_family"] != "lowrank" else set()
    return RunSpec.make(max_steps=STEPS, **{key: value for key, value in cell.items() if key not in unfit})


def complaint(function, *arguments, **keywords) -> str:
    """Return the UserError's message; it must be one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# --- names ---------------------------------------------------------------------------------------


def test_the_property_tests_vary_every_axis():
    assert set(VALUES) == set(AXES)


@settings(max_examples=300)
@given(st.fixed_dictionaries(VALUES))
def test_a_name_reads_back_into_the_same_spec_and_is_safe_as_a_file_name(cell):
    spec = make(**cell)
    assert parse_name(spec.name, max_steps=STEPS) == spec
    assert RunSpec.from_json(spec.to_json()) == spec
    assert re.fullmatch(r"[A-Za-z0-9.+_-]+", spec.name)
    assert RunFiles(Path("results"), spec.name).csv.parent == Path("results/csv_logs")


@settings(max_examples=300)
@given(st.fixed_dictionaries(VALUES), st.data())
def test_two_specs_share_a_name_only_if_they_are_equal(cell, data):
    key = data.draw(st.sampled_from(AXES))
    one, other = make(**cell), make(**cell | {key: data.draw(VALUES[key])})
    assert (one == other) == (one.name == other.name) == (one.to_json() == other.to_json())


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ({"mode": "ZO", "batch_size": 4, "query_budget_q": 8}, "ZO_reduced_bs4_q8_lr1e-05"),
        ({"mode": "FO", "scope": "full", "query_budget_q": 8}, "FO_full_bs8_q0_lr1e-05"),
        ({"mode": "ZO", "seed": 1, "optimizer": "adam"}, "ZO_reduced_bs8_q1_lr1e-05_optadam_seed1"),
        ({"mode": "ZO", "learning_rate": "0.00025"}, "ZO_reduced_bs8_q1_lr2.5e-04"),
        ({"mode": "ZO", "seed": 0, "epsilon": "0.001"}, "ZO_reduced_bs8_q1_lr1e-05"),
        ({"mode": "FO", "bp_interval": 7, "epsilon": 5}, "FO_reduced_bs8_q0_lr1e-05"),
        ({"mode": "Calibrate", "bp_interval": 7}, "Calibrate_reduced_bs8_q1_lr1e-05_bp7"),
    ],
)
def test_a_name_spells_the_cell_and_whatever_is_off_its_default_and_read_by_the_mode(cell, name):
    assert RunSpec.make(max_steps=1, **cell).name == name


def test_every_suffix_is_one_of_its_own():
    assert len(set(SUFFIXES.values())) == len(SUFFIXES)
    assert set(SUFFIXES) == set(AXES) - {"mode", "scope", "batch_size", "query_budget_q", "learning_rate"}


@given(POSITIVE)
def test_a_number_has_one_spelling_the_shortest_that_reads_back_exactly(x):
    text = format_number(x)
    assert float(text) == x
    assert re.fullmatch(r"[1-9](\.\d*[1-9])?e[+-]\d{2,3}", text)
    digits = len(text.split("e")[0].replace(".", ""))
    assert digits == 1 or float(f"{x:.{digits - 2}e}") != x


@pytest.mark.parametrize(
    ("x", "text"), [(1e-5, "1e-05"), (2.5e-4, "2.5e-04"), (1e10, "1e+10"), (1, "1e+00"), (5e-324, "5e-324")]
)
def test_the_exponent_has_a_sign_and_two_digits(x, text):
    assert format_number(x) == text


@pytest.mark.parametrize(
    ("spelled", "right"),
    [
        ("ZO_full_bs4_q8_lr1e-5", "ZO_full_bs4_q8_lr1e-05"),
        ("ZO_full_bs4_q8_lr0.00001", "ZO_full_bs4_q8_lr1e-05"),
        ("ZO_full_bs4_q8_lr1.0e-05", "ZO_full_bs4_q8_lr1e-05"),
        ("ZO_full_bs4_q8_lr1E-05", "ZO_full_bs4_q8_lr1e-05"),
        ("ZO_full_bs4_q8_lr0.25e-03", "ZO_full_bs4_q8_lr2.5e-04"),
        ("ZO_full_bs04_q8_lr1e-05", "ZO_full_bs4_q8_lr1e-05"),
        ("ZO_full_bs4e0_q8_lr1e-05", "ZO_full_bs4_q8_lr1e-05"),
        ("FO_full_bs4_q8_lr1e-05", "FO_full_bs4_q0_lr1e-05"),
        ("ZO_full_bs4_q8_lr1e-05_seed0", "ZO_full_bs4_q8_lr1e-05"),
        ("ZO_full_bs4_q8_lr1e-05_seed1_optadam", "ZO_full_bs4_q8_lr1e-05_optadam_seed1"),
        ("ZO_full_bs4_q8_lr1e-05_seed1_seed1", "ZO_full_bs4_q8_lr1e-05_seed1"),
        ("FO_full_bs4_q0_lr1e-05_eps1e-02", "FO_full_bs4_q0_lr1e-05"),
    ],
)
def test_another_spelling_is_an_error_that_gives_the_right_one(spelled, right):
    message = complaint(parse_name, spelled, max_steps=1)
    assert repr(spelled) in message
    assert message.endswith(f"is spelled {right!r}")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "",
        "x",
        "ZO_full_bs4_q8_lr1e-05/../../x",
        "../ZO_full_bs4_q8_lr1e-05",
        "ZO_../../x_bs4_q8_lr1e-05",
        "ZO_full_bs4_q8_lr1e-05_size../../x",
        "ZO_full_bs4_q8_lr1e-05\0",
        "ZO_full_bs4_q8_lr1e-05\n",
        "ZO_full_bs4_q8_lr1e-05 ",
        "ZO_full_bs4_q8_lr1e-05_",
        "ZO_full_bs４_q8_lr1e-05",  # a digit, but not one of ASCII's
    ],
)
def test_no_name_leads_out_of_the_results_folder(name):
    assert repr(name) in complaint(parse_name, name, max_steps=1)


def test_a_name_that_does_not_parse_shows_the_pattern_and_an_unknown_suffix_the_nearest():
    assert "e.g. ZO_reduced_bs4_q8_lr1e-05" in complaint(parse_name, "ZO_full_bs4", max_steps=1)
    message = complaint(parse_name, "ZO_full_bs4_q8_lr1e-05_sed1", max_steps=1)
    assert "unknown suffix 'sed1': did you mean 'seed'?" in message


# --- numbers -------------------------------------------------------------------------------------


NUMBERS = [key for key, info in RunSpec.model_fields.items() if re.search("int|float", str(info.annotation))]


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_may_be_written_as_text_in_any_spelling(key):
    mode = next(mode for mode in ("Instruct", "Calibrate", "FO", "LayerwiseFO") if uses(mode, key))
    others = {"vocab_size": ("3e2", 300), "momentum": ("5e-1", 0.5)}
    others |= dict.fromkeys(("max_tokens", "max_forwards"), ("1e4", 10_000))  # of at least one step
    text, value = others.get(key, ("1e0", 1))
    rest = {} if key in LENGTHS else {"max_steps": 3}
    rest |= {"mode": mode, "scope": METHODS[mode].only_scope or "reduced", "bp_interval": 1}
    assert getattr(RunSpec.make(**rest | {key: text}), key) == value


@given(st.integers(1, 2**53 - 1))
def test_a_whole_number_in_text_loses_no_digit(n):
    assert RunSpec.make(mode="FO", max_steps=1, seed=str(n)).seed == n


# --- what bad input gets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"lerning_rate": 1}, ["unknown setting 'lerning_rate'", "did you mean 'learning_rate'?"]),
        ({"mode": "Zo"}, ["unknown mode 'Zo'", "did you mean 'ZO'?", "FO, ZO, Calibrate"]),
        ({"mode": None}, ["unknown mode None", "allowed: FO, ZO"]),
        ({"mode": ["ZO"]}, ["unknown mode ['ZO']", "allowed: FO, ZO"]),
        ({"scope": "reducd"}, ["unknown scope 'reducd'", "did you mean 'reduced'?", "block<i>"]),
        ({"scope": "block2"}, ["no block2", "block0 to block1"]),
        ({"optimizer": "adm"}, ["unknown optimizer 'adm'", "did you mean 'adam'?", "mudamw"]),
        ({"model_size": "2M"}, ["unknown model_size '2M'", "did you mean '20M'?", "100k, 1M"]),
        ({"architecture": "lama"}, ["unknown architecture 'lama'", "did you mean 'llama'?", "gpt2"]),
        ({"precision": "fp8"}, ["unknown precision 'fp8'", "fp32, bf16, fp16"]),
        ({"learning_rate": -1e-3}, ["learning_rate", "-0.001", "greater than 0"]),
        ({"learning_rate": 0}, ["learning_rate", "0", "greater than 0"]),
        ({"learning_rate": "fast"}, ["learning_rate", "'fast'", "number"]),
        ({"learning_rate": "nan"}, ["learning_rate", "'nan'", "greater than 0"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan", "greater than 0"]),
        ({"weight_decay": "nan"}, ["weight_decay", "'nan'", "not allowed"]),
        ({"learning_rate": "inf"}, ["learning_rate", "'inf'", "finite number"]),
        ({"learning_rate": 1e999}, ["learning_rate", "inf", "finite number"]),
        ({"learning_rate": True}, ["learning_rate", "True", "not true or false"]),
        ({"learning_rate": False}, ["learning_rate", "False", "not true or false"]),
        ({"learning_rate": [1e-3]}, ["learning_rate", "[0.001]", "number"]),
        ({"batch_size": 0}, ["batch_size", "0", "greater than or equal to 1"]),
        ({"batch_size": 1.5}, ["batch_size", "1.5", "integer"]),
        ({"batch_size": "1.5e0"}, ["batch_size", "'1.5e0'", "integer"]),
        ({"batch_size": True}, ["batch_size", "True", "not true or false"]),
        ({"query_budget_q": 0}, ["query_budget_q", "0", "mode ZO", "1 or more"]),
        ({"query_budget_q": -1}, ["query_budget_q", "-1", "greater than or equal to 0"]),
        ({"mode": "Calibrate"}, ["bp_interval", "missing", "Calibrate", "1 or more"]),
        ({"mode": "Instruct"}, ["bp_interval", "missing", "Instruct", "1 or more"]),
        ({"mode": "Instruct", "bp_interval": 0}, ["bp_interval", "0", "greater than or equal to 1"]),
        ({"mode": "Instruct", "bp_interval": 1, "cosine_target": 0}, ["cosine_target", "greater than 0"]),
        (
            {"mode": "Instruct", "bp_interval": 1, "cosine_target": 1.1},
            ["cosine_target", "1.1", "equal to 1"],
        ),
        ({"block_size": 257}, ["block_size", "257", "model_size 100k", "256 positions"]),
        ({"validation_block_size": 300}, ["validation_block_size", "300", "256 positions"]),
        ({"max_steps": None}, ["exactly one of max_steps, epochs, max_tokens, max_forwards", "none given"]),
        ({"epochs": 1}, ["exactly one of", "max_steps and epochs given"]),
        ({"optimizer": "adam", "momentum": 0.9}, ["momentum", "sgd and muon, not adam"]),
        ({"momentum": 1}, ["momentum", "1", "less than 1"]),
        ({"cautious": True}, ["cautious", "mudamw, not sgd"]),
        ({"cautious": "perhaps"}, ["cautious", "'perhaps'", "boolean"]),
        ({"mode": "FO", "gradient_accumulation": 3}, ["gradient_accumulation", "3", "divide batch_size 8"]),
        ({"epsilon": 0}, ["epsilon", "0", "greater than 0"]),
        ({"seed": 2**53}, ["seed", str(2**53), "less than"]),
        ({"dataset": 5}, ["dataset", "5", "string"]),
        ({"dataset": ["kjv", "shakespeare"]}, ["dataset", "'kjv'", "string"]),
        ({"plan": "paralel"}, ["unknown plan 'paralel'", "did you mean 'parallel'?"]),
        ({"vocab_size": 256}, ["vocab_size", "256", "greater than or equal to 257"]),
        ({"weights": "bf16"}, ["weights", "bf16", "precision fp32", "give precision bf16 too"]),
        (
            {"weights": "bf16", "precision": "bf16", "optimizer": "adamw"},
            ["weights", "optimizer adamw", "plain sgd"],
        ),
        (
            {"weights": "bf16-nearest", "precision": "bf16", "momentum": 0.9, "weight_decay": 0.1},
            ["bf16-nearest", "momentum 0.9 and weight_decay 0.1", "plain sgd"],
        ),
        ({"scope": "full\nreduced"}, ["scope", "'full\\nreduced'"]),
    ],
    ids=str,
)
def test_a_bad_setting_is_one_line_with_key_value_and_what_is_allowed(bad, words):
    message = complaint(RunSpec.make, **{"mode": "ZO", "max_steps": 1} | bad)
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["{broken", "", "[1]", "null", '"ZO"', '{"mode": {}}', "{}"])
def test_a_spec_that_is_no_json_object_is_one_line(text):
    complaint(RunSpec.from_json, text)


def test_the_spec_itself_cannot_be_changed_afterwards():
    spec = RunSpec.make(mode="FO", max_steps=1)
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 1


# --- length --------------------------------------------------------------------------------------


@given(
    mode=st.sampled_from(list(METHODS)),
    q=st.integers(1, 9),
    sides=st.sampled_from(["one", "two"]),
    interval=st.integers(1, 6),
    budget=st.integers(1, 400),
)
def test_max_forwards_is_the_last_step_that_fits_the_budget(mode, q, sides, interval, budget):
    cell = {"query_budget_q": q, "sides": sides, "bp_interval": interval, "embedding_parts": interval}
    cell |= {"mode": mode, "scope": METHODS[mode].only_scope or "reduced"}
    spec = RunSpec.make(**cell, max_forwards=1e6)

    def spent(steps):  # by a run of so many
        return sum(METHODS[mode].forward_passes(spec, step, steps) for step in range(1, steps + 1))

    if spent(METHODS[mode].least_steps(spec)) > budget:
        assert "max_forwards" in complaint(RunSpec.make, **cell, max_forwards=budget)
        return
    steps = total_steps(RunSpec.make(**cell, max_forwards=budget))
    assert spent(steps) <= budget < spent(steps + 1)


def test_epochs_and_tokens_become_whole_steps_and_none_at_all_is_an_error():
    cell = {"mode": "FO", "block_size": 64, "batch_size": 4}
    assert total_steps(RunSpec.make(epochs=1.5, **cell), steps_per_epoch=7) == 10
    assert "epochs: 0.01" in complaint(total_steps, RunSpec.make(epochs=0.01, **cell), steps_per_epoch=7)
    assert total_steps(RunSpec.make(max_tokens=256 * 3 + 255, **cell)) == 3
    assert "max_tokens: 1" in complaint(RunSpec.make, max_tokens=1, **cell)


def test_json_has_sorted_keys_and_every_setting():
    data = json.loads(RunSpec.make(mode="ZO", max_steps=1).to_json())
    assert list(data) == sorted(RunSpec.model_fields)
