"""A study file stands for exactly the runs it should, however it is written down, and says what is wrong."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from zo.errors import UserError
from zo.study import load_study, read_study

ROOT = Path(__file__).parents[2]
STUDIES = [ROOT / "config.yaml", *sorted((ROOT / "workflow" / "studies").glob("*.yaml"))]
SMALL = {"study": "t", "modes": "ZO", "learning_rates": "1e-4", "max_steps": 3}


def load(**keys):
    return load_study({key: value for key, value in (SMALL | keys).items() if value is not None})


def names(**keys) -> list[str]:
    return list(load(**keys).runs)


def texts(study) -> list[str]:
    return sorted(spec.to_json() for spec in study.runs.values())


def complaint(function, *arguments, **keywords) -> str:
    """Return the UserError's message; it must be one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# --- the grid ------------------------------------------------------------------------------------


def test_an_axis_that_a_mode_does_not_use_never_multiplies_its_runs():
    runs = names(modes=["FO", "ZO", "Frozen"], query_budgets=[1, 8], epsilon=[1e-3, 1e-2], bp_interval=[5, 9])
    assert runs == [
        "FO_reduced_bs8_q0_lr1e-04",
        "ZO_reduced_bs8_q1_lr1e-04",
        "ZO_reduced_bs8_q1_lr1e-04_eps1e-02",
        "ZO_reduced_bs8_q8_lr1e-04",
        "ZO_reduced_bs8_q8_lr1e-04_eps1e-02",
        "Frozen_reduced_bs8_q0_lr1e-04",
    ]


@pytest.mark.parametrize(
    "rates",
    [
        ["1e-3", 1e-4, "1e-5", 0.1],
        {"FO": ["1e-1"], "ZO": [1e-4, "1e-5"], "default": 1e-3},
        {"FO": "1e-1", "ZO": ["1e-5", 1e-4]},
        {"FO": "1e-1", "ZO": "1e-6", "Frozen": ["1e-3", "1e-5"]},  # its own, where it is named
    ],
    ids=str,
)
def test_frozen_is_one_run_per_scope_batch_size_and_seed_with_the_smallest_learning_rate(rates):
    grid = {"scopes": ["full", "head"], "batch_sizes": [2, 4], "seed": [0, 1], "optimizer": ["sgd", "adam"]}
    runs = names(modes=["FO", "ZO", "Frozen"], learning_rates=rates, query_budgets=[1, 2], **grid)
    assert sorted(run for run in runs if run.startswith("Frozen")) == sorted(
        f"Frozen_{scope}_bs{batch}_q0_lr1e-05{seed}"
        for scope in ("full", "head")
        for batch in (2, 4)
        for seed in ("", "_seed1")
    )


def test_further_grids_are_the_studys_own_but_for_what_they_say():
    runs = load(
        modes=["FO", "ZO"],
        scopes="full",
        query_budgets=4,
        log_interval=7,
        also=[{"modes": "FO", "model_size": "1M", "max_steps": 2, "log_interval": 1}],
    ).runs
    assert {run: (spec.max_steps, spec.log_interval) for run, spec in runs.items()} == {
        "FO_full_bs8_q0_lr1e-04": (3, 7),
        "ZO_full_bs8_q4_lr1e-04": (3, 7),
        "FO_full_bs8_q0_lr1e-04_size1M": (2, 1),
    }


def test_a_further_grids_length_takes_the_place_of_the_studys_own():
    runs = load(query_budgets=4, also=[{"query_budgets": 1, "max_forwards": 64}]).runs
    lengths = {spec.query_budget_q: (spec.max_steps, spec.max_forwards) for spec in runs.values()}
    assert lengths == {4: (3, None), 1: (None, 64)}


def test_a_run_that_two_grids_give_alike_is_one_run():
    assert names(query_budgets=4, also=[{"query_budgets": [1, 4]}, {}]) == [
        "ZO_reduced_bs8_q4_lr1e-04",
        "ZO_reduced_bs8_q1_lr1e-04",
    ]


def test_a_run_outside_the_grids_has_the_studys_settings_whatever_the_further_ones_say():
    study = load(also=[{"query_budgets": 7, "max_steps": 9}])
    assert study.resolve("ZO_reduced_bs8_q7_lr1e-04").max_steps == 9
    assert study.resolve("ZO_reduced_bs8_q6_lr1e-04").max_steps == 3


def test_a_scope_to_probe_is_checked_also_where_nothing_is_probed():
    assert complaint(load, probe_scopes="full'; touch x; '").startswith("unknown scope")


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ({"modes": "FO"}, "also: {'modes': 'FO'} is not allowed: it must be a list of mappings, one a grid"),
        (["FO"], "also: ['FO'] is not allowed: it must be a list of mappings, one a grid"),
        ([{"model_sise": "1M"}], "also: unknown config key 'model_sise': did you mean 'model_size'?"),
        ([{"threads": 2}], "also: unknown config key 'threads'"),
        (
            [{"max_steps": 9}],
            "also: two grids give ZO_reduced_bs8_q1_lr1e-04 different settings: max_steps 3 and 9",
        ),
        ([{"max_steps": 9, "epochs": 1}], "a run's length is exactly one of"),
    ],
    ids=str,
)
def test_a_mistake_in_a_further_grid_is_one_line(also, said):
    assert complaint(load, also=also).startswith(said)


def test_an_axis_may_be_a_scalar_a_list_or_a_mapping_from_mode_with_a_default():
    modes = ["FO", "ZO", "Random"]
    runs = names(
        modes=modes, query_budgets={"ZO": [1, 8], "default": 4}, block_size={"FO": 128, "default": 64}
    )
    assert runs == [
        "FO_reduced_bs8_q0_lr1e-04_block128",
        "ZO_reduced_bs8_q1_lr1e-04",
        "ZO_reduced_bs8_q8_lr1e-04",
        "Random_reduced_bs8_q4_lr1e-04",
    ]


def test_a_mapping_need_not_name_the_modes_that_do_not_use_its_axis():
    assert len(names(modes=["FO", "ZO"], query_budgets={"ZO": [1, 2]})) == 3


def test_an_empty_value_leaves_an_axis_at_its_default():
    assert names(scopes=None, seed=None) == ["ZO_reduced_bs8_q1_lr1e-04"]
    assert list(load_study(SMALL | {"scopes": None, "epochs": None}).runs) == ["ZO_reduced_bs8_q1_lr1e-04"]


def test_duplicates_collapse_however_they_are_spelled():
    assert len(names(modes=["ZO", "ZO"], learning_rates=["1e-4", 1e-4, "0.0001"], batch_sizes=["8", 8])) == 1


YAML_1_1 = """
study: t
modes: [Instruct]
learning_rates: [1e-4, 1e+0]
batch_sizes: 1e1
query_budgets: [1e0, 2]
bp_interval: 1e1
cosine_target: [9e-1, 5e-1]
epsilon: {Instruct: 1e-2, default: 1e-3}
seed: 1e0
max_steps: 1e3
log_interval: 1e1
threads: 1e0
"""


def test_yaml_reads_1e_4_as_text_and_it_works_all_the_same():
    config = yaml.safe_load(YAML_1_1)
    assert config["learning_rates"][0] == "1e-4"
    study = load_study(config)
    assert len(study.runs) == 8
    assert "Instruct_reduced_bs10_q2_lr1e+00_eps1e-02_bp10_cos5e-01_seed1" in study.runs
    assert {(spec.max_steps, spec.log_interval) for spec in study.runs.values()} == {(1000, 10)}


def test_the_full_study_is_the_grid_counted_by_hand():
    modes = Counter(spec.mode for spec in read_study(ROOT / "workflow/studies/full.yaml").runs.values())
    # FO: 2 scopes x 5 batch sizes x 3 rates; ZO: those x 6 query budgets.
    assert modes == {"FO": 30, "ZO": 180}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_committed_study_loads_and_names_its_own_folder(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_study(path)
    assert study.runs
    assert study.results == ("results" if path.name == "config.yaml" else f"results/{path.stem}")
    assert all(study.resolve(name) == spec and spec.name == name for name, spec in study.runs.items())


def test_the_committed_studies_have_folders_of_their_own():
    folders = [read_study(path).results for path in STUDIES]
    assert len(set(folders)) == len(folders)


@settings(deadline=None, max_examples=20)
@given(st.permutations(sorted(yaml.safe_load((ROOT / "config.yaml").read_text()))))
def test_the_order_of_keys_changes_nothing(keys):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert texts(load_study({key: config[key] for key in keys})) == texts(load_study(config))


POOL = {
    "modes": ["FO", "ZO", "Calibrate", "Instruct", "Random"],
    "scopes": ["full", "reduced", "block1"],
    "batch_sizes": [1, 8, 16],
    "query_budgets": [1, 2, 8],
    "learning_rates": ["1e-3", 1e-4, "1e+0"],
    "optimizer": ["sgd", "adam", "mudamw"],
    "seed": [0, 1],
    "model_size": ["100k", "1M"],
    "bp_interval": [1, 10],
}


@settings(deadline=None, max_examples=30)
@given(st.fixed_dictionaries({key: st.permutations(values) for key, values in POOL.items()}), st.data())
def test_a_second_value_on_any_axis_renames_and_changes_no_run(orders, data):
    one = {key: order[:1] for key, order in orders.items()}
    more = {key: data.draw(st.integers(1, 2)) for key in POOL}
    two = {key: order[: more[key]] for key, order in orders.items()}
    before, after = load(**one).runs, load(**two).runs
    assert before.items() <= after.items()


def test_ten_thousand_cells_expand():
    rates = [n * 1e-4 for n in range(1, 11)]
    assert len(names(query_budgets=[1, 2, 4, 8], learning_rates=rates, seed=list(range(250)))) == 10_000


def test_a_run_outside_the_grid_shares_the_studys_settings():
    study = load(dataset="kjv", log_interval=7)
    outside = study.resolve("ZO_full_bs4_q16_lr3e-04")
    assert "ZO_full_bs4_q16_lr3e-04" not in study.runs
    assert (outside.dataset, outside.log_interval, outside.max_steps) == ("kjv", 7, 3)
    assert "is spelled 'ZO_full_bs4_q16_lr3e-04'" in complaint(study.resolve, "ZO_full_bs4_q16_lr3e-4")


def test_block_and_batch_sizes_need_no_second_cache_but_another_tokenizer_or_backprop_corpus_does():
    assert len(load(block_size=[32, 64], batch_sizes=[1, 2], modes=["FO", "ZO"]).caches()) == 1
    assert len(load(model_size=["100k", "1M"]).caches()) == 2
    assert len(load(modes="Instruct", bp_interval=2, bp_dataset="kjv").caches()) == 2


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modes: FO\nmodes: ZO\n", "line 2, column 1: key 'modes' stands here and in line 1"),
        (
            "study: t\nlearning_rates:\n  FO: 1\n  ZO: 2\n  FO: 3\n",
            "line 5, column 3: key 'FO' stands here and in line 3",
        ),
        ("also:\n  - {scopes: full, scopes: head}\n", "line 2, column 20: key 'scopes' stands here and in"),
        ("a: [1,\nb: }", "line 2, column 4: expected the node content"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
    ],
)
def test_a_key_that_stands_twice_or_no_yaml_is_told_by_its_line(tmp_path, text, words):
    (tmp_path / "s.yaml").write_text(text)
    told = complaint(read_study, tmp_path / "s.yaml")
    assert told.startswith(f"{tmp_path / 's.yaml'}: cannot be read: {words}")


def test_a_key_that_overrides_a_merged_one_stands_once(tmp_path):
    grid = "{modes: FO, learning_rates: 1, scopes: full}"
    text = f"study: t\nmax_steps: 1\n<<: &grid {grid}\nmodes: ZO\nalso:\n  - {{<<: *grid, scopes: head}}\n"
    (tmp_path / "s.yaml").write_text(text)
    names = list(read_study(tmp_path / "s.yaml").runs)
    assert names == ["ZO_full_bs8_q1_lr1e+00", "FO_head_bs8_q0_lr1e+00"]


# --- what bad input gets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"lerning_rates": 1}, ["unknown config key 'lerning_rates'", "did you mean 'learning_rates'?"]),
        ({"learning_rate": 1}, ["unknown config key 'learning_rate'", "did you mean 'learning_rates'?"]),
        ({"modes": "zo"}, ["unknown mode 'zo'", "did you mean 'ZO'?"]),
        ({"modes": ["FO", "calibrat"]}, ["unknown mode 'calibrat'", "did you mean 'Calibrate'?"]),
        ({"modes": {"ZO": 1}}, ["modes", "not allowed"]),
        ({"scopes": "ful"}, ["unknown scope 'ful'", "did you mean 'full'?"]),
        ({"scopes": False}, ["scope", "False", "string"]),  # `scopes: no` in YAML
        ({"optimizer": ["sgd", "adm"]}, ["unknown optimizer 'adm'", "did you mean 'adam'?"]),
        ({"model_size": "1m5"}, ["unknown model_size '1m5'", "did you mean '1M'?"]),
        ({"architecture": "gpt"}, ["unknown architecture 'gpt'", "did you mean 'gpt2'?"]),
        ({"dataset": "shakespear"}, ["unknown dataset 'shakespear'", "did you mean 'shakespeare'?"]),
        ({"dataset": "no/such/file.txt"}, ["'no/such/file.txt'", "no such file", "shakespeare"]),
        ({"tokenizer": "byts"}, ["unknown tokenizer 'byts'", "did you mean 'bytes'?"]),
        ({"learning_rates": -1}, ["learning_rate", "-1", "greater than 0"]),
        ({"learning_rates": ["1e-3", "x"]}, ["learning_rate", "'x'", "number"]),
        ({"learning_rates": "nan", "modes": "Frozen"}, ["learning_rate", "'nan'"]),
        ({"learning_rates": True}, ["learning_rate", "True", "not true or false"]),
        ({"learning_rates": []}, ["learning_rates", "empty", "at least one"]),
        ({"learning_rates": {"ZO": []}}, ["learning_rates.ZO", "empty"]),
        ({"learning_rates": {"FO": 1}}, ["learning_rates", "no value for mode ZO", "'default'"]),
        ({"learning_rates": {"ZZ": 1, "ZO": 1}}, ["unknown mode in learning_rates 'ZZ'", "default"]),
        ({"learning_rates": [[1]]}, ["learning_rates", "[[1]]", "a value, a list, or a mapping"]),
        ({"learning_rates": None}, ["'learning_rates' is missing"]),
        ({"modes": None}, ["'modes' is missing"]),
        ({"study": None}, ["'study' is missing"]),
        ({"query_budgets": [1, 0]}, ["query_budget_q", "0", "1 or more"]),
        ({"batch_sizes": [0]}, ["batch_size", "0", "greater than or equal to 1"]),
        ({"batch_sizes": []}, ["batch_sizes", "empty"]),
        ({"modes": "Calibrate"}, ["bp_interval", "missing", "Calibrate"]),
        ({"modes": "Instruct", "bp_interval": 2, "cosine_target": [0.5, 2]}, ["cosine_target", "2"]),
        ({"block_size": 512}, ["block_size", "512", "256 positions"]),
        ({"max_steps": None}, ["exactly one of max_steps, epochs, max_tokens, max_forwards", "none"]),
        ({"epochs": 1}, ["exactly one of", "max_steps and epochs given"]),
        ({"optimizer": "adam", "momentum": 0.9}, ["momentum", "not adam"]),
        ({"cautious": True}, ["cautious", "mudamw, not sgd"]),
        ({"log_interval": [1, 2]}, ["log_interval", "[1, 2]", "integer"]),
        ({"threads": 0}, ["threads", "0", "greater than or equal to 1"]),
        ({"retries": "many"}, ["retries", "'many'", "integer"]),
        ({"study": "../x"}, ["study", "'../x'", "letters, digits"]),
        ({"study": ""}, ["study", "''", "letters, digits"]),
        ({"study": 5}, ["study", "5", "string"]),
    ],
    ids=str,
)
def test_a_bad_study_is_one_line_with_key_value_and_what_is_allowed(bad, words):
    message = complaint(load, **bad)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a: [1,\nb: }", "cannot be read"),
        (b"a:\n\tb: 1", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"- modes\n", "a mapping of keys"),
        (b"", "a mapping of keys"),
        (b"just text", "a mapping of keys"),
        (json.dumps(SMALL | {"modes": "zo"}).encode(), "did you mean 'ZO'?"),
    ],
    ids=str,
)
def test_a_study_file_that_cannot_be_used_is_one_line_that_names_it(content, word, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    message = complaint(read_study, path)
    assert message.startswith(f"{path}: ")
    assert word in message


def test_a_study_file_that_cannot_be_opened_is_one_line_that_names_it(tmp_path):
    assert str(tmp_path / "none.yaml") in complaint(read_study, tmp_path / "none.yaml")
    assert str(tmp_path) in complaint(read_study, tmp_path)
    if os.getuid() == 0:
        return  # root reads any file
    locked = tmp_path / "locked.yaml"
    locked.touch(mode=0)
    assert str(locked) in complaint(read_study, locked)


# --- how it runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ([0, 2], ("0", "2")),
        (["2", 0, 2], ("2", "0")),
        ("0,2", ("0", "2")),
        (["GPU-8ab/x", "MIG-1c.2"], ("GPU-8ab/x", "MIG-1c.2")),
    ],
)
def test_gpus_are_auto_none_or_ids_however_spelled(given, read):
    assert load(gpus=given).workflow.gpus == read


@pytest.mark.parametrize("value", [[], 2, "all", [True], [-1], ["0; rm -rf x"], ["$(id)"], {"FO": 0}])
def test_other_gpus_are_an_error_that_shows_a_list(value):
    assert "gpus: " in (text := complaint(load, gpus=value))
    assert "must be auto, none or a list of ids, e.g. [0, 2]" in text


def test_a_gpu_has_at_least_one_job():
    assert load(jobs_per_gpu="2").workflow.jobs_per_gpu == 2
    assert "jobs_per_gpu: 0 is not allowed" in complaint(load, jobs_per_gpu=0)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"probe_steps": [5]}, "probe_steps: no run is probed: name runs with the key probe"),
        (
            {"probe": "ZO*", "probe_steps": [11]},
            "probe_steps: 11 is not allowed: no probed run goes beyond 10",
        ),
        ({"probe": "ZO*", "probe_steps": 0}, "probe_steps: 0 is not allowed"),
        ({"backward_cost": -1}, "backward_cost: -1 is not allowed"),
        ({"backward_cost": "two"}, "backward_cost: 'two' is not allowed"),
    ],
)
def test_steps_and_costs_that_cannot_be_are_one_line(keys, said):
    study = {"study": "x", "modes": "ZO", "learning_rates": "1e-3", "max_steps": 10}
    with pytest.raises(UserError, match="^" + re.escape(said)):
        load_study(study | keys)


@pytest.mark.parametrize("steps", ["5,2,5", [5, "2"], (2, 5)])
def test_probe_steps_are_read_in_their_order_from_any_spelling(steps):
    study = {"study": "x", "modes": "ZO", "learning_rates": "1e-3", "max_steps": 10, "probe": "ZO*"}
    assert load_study(study | {"probe_steps": steps}).workflow.probe_steps == (2, 5)


def test_words_are_taken_apart_at_commas_as_numbers_are():
    """`zo sweep` and --config give text."""
    given = {"probe": "ZO_*bs4*, ZO_*bs8*", "probe_scopes": "full,head", "probe_steps": "1,2"}
    study = load(batch_sizes=[4, 8], **given)
    assert study.workflow.probe == ("ZO_*bs4*", "ZO_*bs8*")
    assert len(study.probed()) == 2
    assert (study.workflow.probe_scopes, study.workflow.probe_steps) == (("full", "head"), (1, 2))


def test_a_length_too_short_for_one_step_is_said_before_the_run():
    message = complaint(load, max_steps=None, max_forwards=3, query_budgets=2)
    assert "max_forwards: 3 is not allowed: not one step of ZO_reduced_bs8_q2_lr1e-04 fits in it" in message
