"""Planted mistakes: each is caught by its guard and takes the verdict away; an honest study gets one."""

import json

import numpy as np
import pandas as pd
import pytest
from made_runs import START, write_crash, write_run

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
