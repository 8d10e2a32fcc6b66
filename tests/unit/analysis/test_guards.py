"""Planted mistakes: each is caught by its guard and takes the verdict away; an honest study gets one."""

import json

import numpy as np
import pandas as pd
import pytest
from made_runs import START, blow_up, write_beside, write_crash, write_run

from zo.analysis.answer import state_answer
from zo.analysis.collect import read_folder
from zo.analysis.summary import stats_text, write_summary
from zo.analysis.verdicts import state_comparisons

RATES = {"FO": (1e-3, 1e-2, 1e-1), "ZO": (1e-4, 1e-3, 1e-2), "Random": (1e-3,), "Frozen": (1e-5,)}
Q = {"ZO": 8, "Random": 8}


def write_honest(folder, seeds=(0, 1, 2), modes=tuple(RATES), noise=0.05, **options):
    """Write a study that makes no mistake: tuned inside the grid, with controls, at an equal number of steps.

    `noise` [nats] shifts the losses of each run by itself, so that intervals have a width.
    """
    rng = np.random.default_rng(0)
    for seed in seeds:
        for mode in modes:
            for lr in RATES[mode]:
                run = write_run(folder, mode, "full", Q.get(mode, 0), lr, seed=seed, **options)
                shift_losses(folder / f"{run}.csv", rng.normal(0, noise))


def shift_losses(path, by, scale=1.0):
    """Move a run's losses after step 0; `scale` -1 mirrors them at the untrained loss."""
    frame = pd.read_csv(path)
    for name in ("loss", "val_loss"):
        moved = START + scale * (frame[name] - START) + by
        frame[name] = frame[name].mask((frame["step"] > 0) & frame[name].notna(), moved)
    frame.to_csv(path, index=False)


def guards_of(folder):
    return {finding.guard: finding for finding in read_folder(folder).findings}


EQUAL_PASSES = 15
"""Forward passes for a backward one at which FO's 100 x (1 + 15) are the 100 x 2 x 8 of ZO."""


def verdict_of(folder, mode="ZO", **options):
    table = read_folder(folder, **options).tables["answer"]
    return table.loc[table["mode"] == mode, "verdict"].item()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "csv_logs"


def test_an_honest_study_gets_its_verdict_and_only_the_note_on_passes(folder):
    write_honest(folder)
    assert set(guards_of(folder)) == {"unequal budget"}
    assert guards_of(folder)["unequal budget"].withholds == ()
    assert verdict_of(folder) == "FO ahead"
    assert verdict_of(folder, "FO") == verdict_of(folder, "Random") == ""


def test_a_difference_that_seeds_drown_is_undecided(folder, tmp_path):
    write_honest(folder, noise=1.5)
    assert verdict_of(folder) == "undecided"
    text = write_summary(folder, tmp_path / "s.txt", tmp_path / "s.csv")
    assert "(the interval holds 0: no difference shown)" in " ".join(text.split())
    assert "Verdict: undecided." in text


def put_ahead(folder, mode="ZO", by=3.0):
    for path in folder.glob(f"{mode}_*.csv"):
        shift_losses(path, -by)


def test_the_sign_of_a_verdict_follows_the_losses(folder):
    write_honest(folder)
    put_ahead(folder)
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "ZO ahead"


def test_a_lead_at_equal_steps_that_more_passes_bought_does_not_stand(folder):
    write_honest(folder)
    assert verdict_of(folder) == "FO ahead"  # though ZO took more
    put_ahead(folder)
    assert verdict_of(folder) == "withheld: unequal budget"
    assert guards_of(folder)["unequal budget"].message.endswith("; ahead with more passes: ZO over FO")


def test_nor_does_fos_lead_over_a_method_that_took_fewer_passes(folder):
    write_honest(folder)
    assert verdict_of(folder, backward_cost=30) == "withheld: unequal budget"
    put_ahead(folder)
    assert verdict_of(folder, backward_cost=30) == "ZO ahead"


def test_an_undecided_difference_is_no_lead_and_loses_nothing(folder):
    write_honest(folder, noise=1.5)
    for path in folder.glob("Random_*.csv"):
        path.unlink()
    put_ahead(folder, by=2.0)
    row = read_folder(folder).tables["answer"].set_index("mode").loc["ZO"]
    assert row["minus_FO_low"] < row["minus_FO"] < 0 < row["minus_FO_high"]
    assert verdict_of(folder) == "undecided"
    assert set(guards_of(folder)) == {"unequal budget", "no control"}


def test_a_verdict_rests_on_the_interval_that_counts_all_comparisons(folder):
    """A difference that 95 % alone would show, and that six comparisons at once do not."""
    write_honest(folder)
    before = read_folder(folder).tables["answer"].set_index("mode").loc["ZO"]
    assert (before["comparisons"], before["all_low"]) == (1, pytest.approx(before["minus_FO_low"]))
    for scope in ("head", "norms", "block0", "block1", "block2"):
        for seed in (0, 1, 2):
            for mode in ("FO", "ZO"):
                write_run(folder, mode, scope, Q.get(mode, 0), RATES[mode][1], seed=seed)
    table = read_folder(folder).tables["answer"]
    assert table["comparisons"].unique() == [6]
    assert "6 comparisons" in state_comparisons(table)
    after = table[(table["mode"] == "ZO") & (table["scope"] == "full")].iloc[0]
    assert after["all_low"] < after["minus_FO_low"] == pytest.approx(before["minus_FO_low"])


@pytest.mark.parametrize(
    ("mode", "kept", "said"),
    [
        ("FO", (1e-3, 1e-2), "FO: its best learning rate, 1e-02, is the highest one tried"),
        ("FO", (1e-2, 1e-1), "the lowest one tried"),
        ("ZO", (1e-3,), "ZO q=8: its best learning rate, 1e-03, is the only one tried"),
    ],
)
def test_a_best_rate_on_the_edge_of_its_grid_withholds_the_verdict(folder, mode, kept, said):
    write_honest(folder)
    for lr in set(RATES[mode]) - set(kept):
        for path in folder.glob(f"{mode}_*_lr{lr:.0e}*.csv"):
            path.unlink()
    assert said in guards_of(folder)["not tuned"].message
    assert verdict_of(folder) == "withheld: not tuned"


def test_one_seed_is_shown_without_interval_and_verdict(folder):
    write_honest(folder, seeds=(0,))
    assert verdict_of(folder) == "withheld: n = 1"
    row = read_folder(folder).tables["answer"].set_index("mode").loc["ZO"]
    assert np.isnan(row[["low", "high", "minus_FO_low", "all_high"]].astype(float)).all()


def test_seeds_that_no_two_methods_share_give_no_verdict(folder):
    write_honest(folder, seeds=(0, 1), modes=("FO",))
    write_honest(folder, seeds=(2, 3), modes=("ZO", "Random", "Frozen"))
    assert verdict_of(folder) == "withheld: no seed in common"


def test_repeats_of_one_seed_are_no_seeds(folder):
    write_honest(folder)
    twin = folder / "ZO_full_bs4_q8_lr1e-03.csv"
    (folder / "again.csv").write_text(twin.read_text())
    found = guards_of(folder)["seeds not distinct"]
    assert "n = 4 counts runs whose seeds are unknown or the same" in found.message
    assert "seeds not distinct" in verdict_of(folder)


@pytest.mark.parametrize(("gone", "said"), [("Random", "no Random run"), ("Frozen", "no Frozen run")])
def test_a_missing_control_is_named(folder, gone, said):
    write_honest(folder, modes=tuple(set(RATES) - {gone}))
    assert guards_of(folder)["no control"].message.startswith(said)
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "FO ahead"
    put_ahead(folder)
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "withheld: no control"


def test_layer_wise_arms_want_the_control_whose_blocks_are_never_trained(folder):
    """Most of what they reach is the embedding's, trained by backprop in all of them."""
    write_honest(folder)
    for seed in (0, 1, 2):
        write_run(folder, "LayerwiseZO", "full", q=8, lr=1e-3, seed=seed)
    assert guards_of(folder)["no control"].message.startswith("no LayerwiseFrozen run")
    for seed in (0, 1, 2):
        write_run(folder, "LayerwiseFrozen", "full", q=0, lr=1e-3, seed=seed)
    assert "no control" not in guards_of(folder)
    assert verdict_of(folder, "LayerwiseFrozen") == ""


def test_arms_at_no_equal_budget_get_no_verdict_and_the_numbers_are_said(folder):
    write_honest(folder, modes=("FO", "Frozen"))
    write_honest(folder, modes=("ZO", "Random"), steps=200)
    found = guards_of(folder)["unequal budget"]
    assert found.withholds == ("ZO",)
    for words in (
        "NO equal budget",
        "steps (FO 100, ZO q=8 200)",
        "forward-pass equivalents (FO 300, ZO q=8 3200)",
    ):
        assert words in found.message
    assert verdict_of(folder) == "withheld: unequal budget"


def test_the_price_of_a_backward_pass_decides_what_is_an_equal_budget(folder):
    write_honest(folder)
    [found] = [f for f in read_folder(folder, backward_cost=15).findings if f.guard == "unequal budget"] or [
        None
    ]
    assert found is None  # 100 x (1 + 15) = 1600 = ZO's 100 x 16


@pytest.mark.parametrize(("mode", "column"), [("ZO", "forward_passes"), ("FO", "backward_passes")])
def test_a_lead_at_passes_that_were_not_logged_does_not_stand(folder, mode, column):
    write_honest(folder)
    put_ahead(folder)
    for path in folder.glob("ZO_*.csv"):  # without backprop there are none to log
        pd.read_csv(path).assign(backward_passes="").to_csv(path, index=False)
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "ZO ahead"
    for path in folder.glob(f"{mode}_*.csv"):
        pd.read_csv(path).assign(**{column: ""}).to_csv(path, index=False)
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "withheld: passes unknown"


def test_seeds_of_one_side_alone_are_named_and_each_loss_is_the_tables(folder):
    write_honest(folder, noise=0)
    for lr in RATES["ZO"]:
        run = write_run(folder, "ZO", "full", 8, lr, seed=3)
        shift_losses(folder / f"{run}.csv", 4.0)
    reading = read_folder(folder)
    [found] = [finding for finding in reading.findings if finding.guard == "seeds differ"]
    assert "ZO q=8 has n = 4 and FO n = 3, but they share 3" in found.message
    fo = reading.tables["answer"].set_index("mode").loc["FO", "loss"]
    [said] = state_answer(reading.tables["answer"], reading.runs)
    assert f"above the best FO's {fo:.3f}" in said


def test_a_rate_that_diverged_in_part_is_not_hidden_by_its_survivors(folder):
    write_honest(folder)
    write_run(folder, "ZO", "full", 8, 1e-3, seed=1, diverges_at=50)
    found = guards_of(folder)["diverged in part"]
    assert "ZO q=8, lr 1e-03: 1 of 3 seeds diverged" in found.message
    table = read_folder(folder).tables["answer"].set_index("mode")
    assert table.loc["ZO", "lr"] != 1e-3


def test_a_mean_of_surviving_seeds_withholds_the_verdict(folder):
    write_honest(folder)
    run = "ZO_full_bs4_q8_lr1e-03_seed1"
    (folder / f"{run}.csv").unlink()
    write_crash(folder, run, ["boom"])
    assert "2 of 3 seeds have a result" in guards_of(folder)["seeds missing"].message
    assert verdict_of(folder) == "withheld: seeds missing"


def test_a_swapped_sign_is_noticed(folder):
    write_honest(folder)
    for path in folder.glob("ZO_*.csv"):
        shift_losses(path, 0, scale=-1)
    found = guards_of(folder)["did not learn"]
    assert "ZO q=8 ends" in found.message
    assert "above the untrained model" in found.message
    for path in folder.glob("FO_*.csv"):
        shift_losses(path, 0, scale=-1)
    assert "did not learn" in verdict_of(folder)  # a broken baseline is beaten by anything


def test_training_losses_are_not_taken_for_validation_losses(folder):
    write_honest(folder, val_loss="")
    assert "TRAINING" in guards_of(folder)["no validation loss"].message
    assert "no validation loss" in verdict_of(folder)


def test_runs_without_a_validation_loss_among_others_are_named(folder):
    write_honest(folder)
    run = write_run(folder, "ZO", "full", 8, 1e-3, seed=5, val_loss="")
    found = guards_of(folder)["no validation loss"]
    assert run in found.message
    assert found.withholds == ()


def test_more_tries_for_one_method_are_counted(folder):
    write_honest(folder)
    for q in (1, 2):
        for lr in RATES["ZO"]:
            write_run(folder, "ZO", "full", q, lr)
    assert guards_of(folder)["uneven tuning"].message.endswith("FO of 3, ZO of 9")


def test_every_guard_is_loud_in_the_summary_and_in_every_format(folder, tmp_path):
    write_honest(folder, seeds=(0,), modes=("FO", "ZO"))
    text = write_summary(folder, tmp_path / "s.txt", tmp_path / "s.csv")
    assert "Guards raised: N = 1 (1)" in text.split("====")[0]
    said = " ".join(text.split())
    assert "NO CONTROL (full): no Random and no Frozen run" in said
    assert "N = 1 (full, verdict on ZO withheld)" in said
    assert "N = 1 (full" in stats_text(folder, format="md")
    assert r"\section*{Guards" in stats_text(folder, format="tex")
    assert {row["guard"] for row in json.loads(stats_text(folder, format="json"))["guards"]} >= {"n = 1"}


# --- runs that were mixed up ---------------------------------------------------------------------

SHARED = {
    **{"precision": "fp32", "weights": "fp32", "ranks": 1, "block_size": 64, "batch_size": 4},
    **{"validation_blocks": 64, "validation_block_size": 64, "dataset": "shakespeare"},
    **{"dataset_revision": None, "tokenizer": "bpe", "vocab_size": 512, "epsilon": 1e-3},
    **{"optimizer": "sgd", "momentum": 0.0, "sides": "two", "validation_interval": 10, "max_steps": 100},
}


def edit(folder, pattern, change):
    """Change the frames of some logs."""
    paths = list(folder.glob(pattern))
    assert paths
    for path in paths:
        change(pd.read_csv(path)).to_csv(path, index=False)


def test_an_honest_study_with_specs_is_free_of_findings(folder):
    write_honest(folder, spec=SHARED)
    for path in folder.glob("ZO_*.csv"):  # what may differ: how it is watched, and a method's own
        own = {"validation_interval": 20, "max_steps": None, "max_forwards": 1600, "sides": "one"}
        write_beside(folder, path.stem, "spec.json", SHARED | own)
    assert set(guards_of(folder)) == {"unequal budget", "control not alike"}  # sides are the estimate's
    for path in folder.glob("Random_*.csv"):
        write_beside(folder, path.stem, "spec.json", SHARED | {"sides": "one"})
    assert set(guards_of(folder)) == {"unequal budget"}
    assert verdict_of(folder) == "FO ahead"


@pytest.mark.parametrize(
    "other",
    [
        *({"validation_blocks": 4}, {"validation_block_size": 32}, {"precision": "bf16"}),
        *({"weights": "bf16"}, {"dataset_revision": "abc"}),
    ],
)
@pytest.mark.parametrize("mode", ["FO", "ZO"])
def test_a_setting_that_is_no_methods_own_withholds_the_verdict(folder, mode, other):
    write_honest(folder, spec=SHARED)
    for path in folder.glob(f"{mode}_*.csv"):
        write_beside(folder, path.stem, "spec.json", SHARED | other)
    found = guards_of(folder)["settings differ"]
    [(key, value)] = other.items()
    assert f"{key} (" in found.message
    assert f"{mode} {value}" in found.message
    assert verdict_of(folder) == "withheld: settings differ"


def test_block_sizes_that_a_study_gives_its_methods_are_named_where_all_are_measured_alike(folder):
    write_honest(folder, spec=SHARED)
    for path in folder.glob("FO_*.csv"):
        write_beside(folder, path.stem, "spec.json", SHARED | {"block_size": 128, "ranks": 2})
    edit(folder, "FO_*.csv", lambda frame: frame.assign(block_size=128))
    assert set(guards_of(folder)) == {"unequal budget", "block sizes differ"}  # and nothing of ranks
    found = guards_of(folder)["block sizes differ"]
    assert found.message.endswith("lengths: block_size (FO 128, ZO 64, Random 64, Frozen 64)")
    assert found.withholds == ()
    assert verdict_of(folder) == "FO ahead"


def test_a_logged_block_size_withholds_where_it_is_not_known_what_measured_the_loss(folder):
    write_honest(folder)
    edit(folder, "FO_*.csv", lambda frame: frame.assign(block_size=128))
    assert guards_of(folder)["settings differ"].message.endswith(
        "block_size (FO 128, ZO 64, Random 64, Frozen 64)"
    )
    assert "settings differ" in verdict_of(folder)


def test_one_seed_in_half_precision_is_found_among_the_others(folder):
    write_honest(folder, spec=SHARED)
    write_beside(folder, "FO_full_bs4_q0_lr1e-02_seed1", "spec.json", SHARED | {"precision": "bf16"})
    assert "precision (FO bf16 and fp32, ZO fp32," in guards_of(folder)["settings differ"].message


@pytest.mark.parametrize("mode", ["FO", "ZO"])
def test_another_start_than_fos_in_one_seed_withholds_the_verdict(folder, mode):
    write_honest(folder)

    def start_at(loss):
        return lambda frame: frame.assign(val_loss=frame["val_loss"].mask(frame["step"] == 0, loss))

    edit(folder, f"{mode}_*_seed1.csv", start_at(1.009 * START))
    assert "other start" not in guards_of(folder)
    edit(folder, f"{mode}_*_seed1.csv", start_at(1.02 * START))
    assert f"{mode} 6.12" in guards_of(folder)["other start"].message
    assert verdict_of(folder) == "withheld: other start"


def test_a_study_without_fo_has_nothing_to_be_unlike(folder):
    write_honest(folder, modes=("ZO", "Random", "Frozen"), spec=SHARED)
    assert not set(guards_of(folder)) & {"other start", "settings differ"}
    assert verdict_of(folder) == "no FO run to compare with"


@pytest.mark.parametrize("thinned", [False, True])
def test_a_copy_of_another_seed_is_no_seed(folder, thinned):
    write_honest(folder)
    for lr in RATES["FO"]:
        run = f"FO_full_bs4_q0_lr{lr:.0e}"
        frame = pd.read_csv(folder / f"{run}.csv").assign(seed=1)
        frame = frame[frame["val_loss"].notna()] if thinned else frame
        frame.to_csv(folder / f"{run}_seed1.csv", index=False)
    message = guards_of(folder)["copied run"].message
    assert message.endswith("both have a loss: FO_full_bs4_q0_lr1e-02 and FO_full_bs4_q0_lr1e-02_seed1")
    assert verdict_of(folder) == "withheld: copied run"


@pytest.mark.parametrize("mode", ["FO", "ZO"])
def test_a_seed_that_ended_before_the_others_withholds_the_verdict(folder, mode):
    write_honest(folder)
    edit(folder, f"{mode}_*_seed2.csv", lambda frame: frame[frame["step"] <= 60])
    message = guards_of(folder)["cut short"].message
    assert "these at 100 steps" in message
    assert "_seed2 at 60" in message
    assert "cut short" in verdict_of(folder)


def test_a_rate_that_changes_within_a_log_is_not_its_first_rows(folder):
    write_honest(folder)

    def resume(frame):
        late = frame["step"] > 50
        return frame.assign(lr=frame["lr"].mask(late, 0.1), batch_size=frame["batch_size"].mask(late, 16))

    edit(folder, "ZO_*_lr1e-03_seed1.csv", resume)
    [finding] = [found for found in read_folder(folder).findings if found.guard == "changed half-way"]
    assert "ZO_full_bs4_q8_lr1e-03_seed1: " in finding.message
    assert "lr 0.001 to 0.1 at row 12 (step 55)" in finding.message
    assert "batch_size 4.0 to 16.0 at row 12" in finding.message
    assert verdict_of(folder) == "withheld: changed half-way"


def test_neighbours_of_one_seed_alone_tune_nothing(folder):
    write_honest(folder)
    for seed in (1, 2):
        for lr in ("1e-03", "1e-01"):
            (folder / f"FO_full_bs4_q0_lr{lr}_seed{seed}.csv").unlink()
    said = "is the only one tried in as many seeds: 1e-02 (fewer seeds: 1e-03, 1e-01)"
    assert said in guards_of(folder)["not tuned"].message
    assert verdict_of(folder) == "withheld: not tuned"


def test_a_rate_that_diverged_in_the_one_seed_that_ran_it_was_tried(folder):
    write_honest(folder)
    for seed in (1, 2):
        (folder / f"FO_full_bs4_q0_lr1e-01_seed{seed}.csv").unlink()
    blow_up(folder, "FO_full_bs4_q0_lr1e-01")
    assert "not tuned" not in guards_of(folder)


# --- controls ------------------------------------------------------------------------------------


def test_a_control_that_blew_up_is_said_and_no_lead_stands_on_it(folder, tmp_path):
    write_honest(folder)
    for path in folder.glob("Random_*.csv"):
        blow_up(folder, path.stem, peak=1e7)
    found = guards_of(folder)["no control"]
    assert found.message.startswith(
        "Random diverged at the only rate tried: 1e-03 (3 of 3 runs; blew up: a loss of 1e+07 at step 50"
    )
    text = " ".join(write_summary(folder, tmp_path / "s.txt", tmp_path / "s.csv").split())
    assert "no Random to compare with, which diverged" in text
    assert "full: Random has no learning rate that finished in every seed (3 diverged)." in text
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "FO ahead"
    put_ahead(folder)
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "withheld: no control"


@pytest.mark.parametrize(
    ("q", "lr", "said"), [(8, 1e-4, "lr (ZO 0.001, Random 0.0001)"), (1, 1e-3, "q (ZO 8, Random 1)")]
)
def test_noise_of_another_length_than_zos_is_no_control_for_a_lead(folder, q, lr, said):
    write_honest(folder, modes=("FO", "ZO", "Frozen"))
    for seed in (0, 1, 2):
        write_run(folder, "Random", "full", q, lr, seed=seed)
    assert said in guards_of(folder)["control not alike"].message
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "FO ahead"
    put_ahead(folder)
    assert verdict_of(folder, backward_cost=EQUAL_PASSES) == "withheld: control not alike"
    for seed in (0, 1, 2):  # among others; the best of them is the harder one to beat
        write_run(folder, "Random", "full", 8, 1e-3, seed=seed)
    assert "control not alike" not in guards_of(folder)


def test_nor_is_noise_of_fewer_steps_than_zos(folder):
    write_honest(folder, modes=("FO", "ZO", "Frozen"))
    for seed in (0, 1, 2):
        write_run(folder, "Random", "full", 8, 1e-3, seed=seed, steps=90)
    found = guards_of(folder)["control not alike"]
    assert found.message.startswith("Random at the settings of ZO q=8, lr 1e-03 took 90 steps, ZO 100: ")
    put_ahead(folder)
    assert "control not alike" in verdict_of(folder, backward_cost=EQUAL_PASSES)
    write_run(folder, "Random", "full", 8, 1e-3, seed=0, steps=96, every=1)
    assert "control not alike" not in guards_of(folder)
