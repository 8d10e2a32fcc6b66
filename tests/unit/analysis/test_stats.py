"""Statistics against made runs whose truth is known, and against scipy."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from made_runs import START, true_val_loss, write_run, write_sweep

from zo.analysis import curves, stats
from zo.analysis.figures.curve_plots import predict_cosine
from zo.analysis.runs import read_logs, summarize_runs


def load(folder):
    logs = read_logs(folder)
    return logs, summarize_runs(logs)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "csv_logs"
    write_sweep(folder, seeds=(0, 1, 2), scopes=("reduced",))
    return load(folder)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "csv_logs"


def pick(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def test_intervals_are_scipys_t_intervals():
    values = [4.1, 4.3, 3.9, 4.45]
    mean, low, high, n = stats.mean_interval(values, 0.95)
    scale = scipy.stats.sem(values)
    assert (low, high) == pytest.approx(scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scale))
    assert (mean, n) == (pytest.approx(np.mean(values)), 4)


def test_one_seed_has_no_interval_and_a_nan_is_refused():
    mean, low, high, n = stats.mean_interval([4.0])
    assert (mean, n) == (4.0, 1)
    assert np.isnan([low, high]).all()
    with pytest.raises(ValueError, match="NaN"):
        stats.mean_interval([4.0, np.nan])
    assert stats.mean_interval([4.0, np.inf])[::3] == (np.inf, 2)


def test_differences_are_paired_by_seed():
    left, right = pd.Series({0: 4.0, 1: 5.0, 2: 6.0}), pd.Series({1: 4.5, 2: 5.2, 3: 9.0})
    gap = stats.difference_interval(left, right)
    assert (gap.mean, gap.n) == (pytest.approx(0.65), 2)
    unpaired = stats.difference_interval(left, right.rename({1: 7, 2: 8}))
    assert (unpaired.n, np.isnan(unpaired.low)) == (0, True)


def test_the_best_learning_rate_is_the_true_one_with_its_interval(sweep):
    best = stats.best_learning_rates(sweep[1])
    fo = pick(best, mode="FO")
    losses = [true_val_loss("FO", 0, 1e-2, 100, seed) for seed in (0, 1, 2)]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(losses), scale=scipy.stats.sem(losses))
    assert (fo["lr"], fo["n"], fo["diverged"], fo["edge"]) == (1e-2, 3, 3, "")  # 1e-1 diverged: tried
    assert fo["tried"] == "1e-03, 1e-02, 1e-01"
    assert (fo["loss"], fo["low"], fo["high"]) == pytest.approx((np.mean(losses), low, high))
    assert pick(best, mode="ZO", q=1)["lr"] == 1e-4
    high = pick(best, mode="ZO", q=8, scope="reduced")
    assert (high["lr"], high["edge"]) == (1e-3, "high edge")
    assert "may lie above" in high["warning"]
    assert pick(best, mode="Random")["edge"] == ""  # a control: always best at its smallest step


@pytest.mark.parametrize(
    ("lr", "tried", "edge"),
    [(1, [1, 2, 3], "low edge"), (3, [1, 2, 3], "high edge"), (2, [1, 2, 3], ""), (1, [1], "single value")],
)
def test_edges_are_flagged(lr, tried, edge):
    assert stats.flag_edge(lr, tried) == edge


def test_of_two_rates_alike_the_one_at_the_edge_is_the_doubt(folder):
    for seed in (0, 1):
        for lr in (1e-4, 1e-3, 1e-2):
            write_run(folder, "ZO", q=8, lr=lr, seed=seed, val_loss={1e-4: 5.0}.get(lr, 4.0))
    best = stats.best_learning_rates(load(folder)[1]).iloc[0]
    assert (best["lr"], best["edge"]) == (1e-2, "high edge")


def test_a_rate_that_fewer_seeds_ran_with_is_no_try(folder):
    for lr in (1e-4, 1e-3, 1e-2):
        for seed in (0, 1) if lr == 1e-3 else (0,):
            write_run(folder, "ZO", q=8, lr=lr, seed=seed)
    best = stats.best_learning_rates(load(folder)[1]).iloc[0]
    assert (best["lr"], best["n"], best["edge"]) == (1e-3, 2, "single value")
    assert best["tried"] == "1e-03 (fewer seeds: 1e-04, 1e-02)"


def test_a_learning_rate_that_diverged_in_one_seed_is_not_chosen(folder):
    for seed in (0, 1):
        write_run(folder, "ZO", q=8, lr=1e-4, seed=seed)
        write_run(folder, "ZO", q=8, lr=1e-3, seed=seed, diverges_at=50 if seed else None)
    best = stats.best_learning_rates(load(folder)[1]).iloc[0]
    assert (best["lr"], best["n"], best["diverged"], best["edge"]) == (1e-4, 2, 1, "low edge")


def test_a_cell_that_only_diverged_stays_in_the_table(folder):
    write_run(folder, "FO", q=0, lr=1e-1, diverges_at=10)
    row = stats.best_learning_rates(load(folder)[1]).iloc[0]
    assert (row["edge"], row["n"], row["tried"]) == ("none", 0, "1e-01")


def test_methods_are_compared_with_fo_and_the_controls(sweep):
    zo = pick(stats.compare_methods(sweep[1]), mode="ZO")
    truth = {mode: true_val_loss(mode, q, lr, 100) for mode, q, lr in (("ZO", 8, 1e-3), ("FO", 0, 1e-2))}
    assert zo["q"] == 8  # the better q leads
    assert zo["minus_FO"] == pytest.approx(truth["ZO"] - truth["FO"])
    assert zo["minus_FO_low"] == pytest.approx(zo["minus_FO"])  # the seeds' offsets cancel in pairs
    assert zo["minus_Frozen"] == pytest.approx(truth["ZO"] + 0.01 - START)


def test_untrained_loss_stands_in_for_frozen(folder):
    write_run(folder, "ZO", q=8, lr=1e-3)
    row = stats.compare_methods(load(folder)[1]).iloc[0]
    assert row["minus_Frozen"] == pytest.approx(true_val_loss("ZO", 8, 1e-3, 100) - START)


def test_crossings_are_interpolated_and_never_extrapolated():
    cost, loss = np.array([0.0, 10, 20]), np.array([6.0, 5, 3])
    assert curves.cross(cost, loss, 5.5) == 5
    assert curves.cross(cost, loss, 4) == 15
    assert curves.cross(cost, loss, 7) == 0
    assert np.isnan(curves.cross(cost, loss, 2.9))


def test_convergence_counts_steps_passes_and_seconds(sweep):
    table = curves.measure_convergence(*sweep, targets=[5.0, 1.0])
    fo, zo = pick(table, mode="FO", target=5.0), pick(table, mode="ZO", q=8, target=5.0)
    losses = [true_val_loss("ZO", 8, 1e-3, s) for s in range(0, 101, 10)]
    steps = [
        np.interp(-5.0, -np.array([6.0, *(x + 0.01 * i for x in losses[1:])]), range(0, 101, 10))
        for i in range(3)
    ]
    assert zo["step"] == pytest.approx(np.mean(steps))
    assert zo["forward_passes"] == zo["equivalents"] == pytest.approx(16 * zo["step"])
    assert fo["equivalents"] == pytest.approx(3 * fo["step"])
    assert fo["seconds"] == pytest.approx(0.03 * fo["step"])
    never = table[table["target"] == 1.0]
    assert never["reached"].eq(0).all()
    assert never["step"].isna().all()


def test_automatic_targets_lie_between_start_and_best(sweep):
    targets = curves.measure_convergence(*sweep)["target"].unique()
    assert len(targets) >= 3
    assert START > max(targets) > min(targets) > stats.best_learning_rates(sweep[1])["loss"].min()


@pytest.mark.parametrize(
    ("fo", "zo", "start", "targets"),
    [
        (10.8711, 10.8570, 10.913, [10.885, 10.8626]),  # one way to go: both ends are ZO's
        (3.487, 5.458, 6.23, [5.84, 5.54, 4.86, 3.76]),
        (3.0, 3.0, 3.0, []),
    ],
)
def test_targets_are_rounded_by_the_way_there_is_and_none_stands_twice(fo, zo, start, targets):
    cells = pd.DataFrame({"mode": ["FO", "ZO"], "loss": [fo, zo]})
    assert curves.choose_targets(cells, start) == targets


def test_equal_budgets_interpolate_within_the_common_range(sweep):
    table = curves.compare_equal_budgets(*sweep)
    row = pick(table, mode="ZO", q=8, kind="forward-pass equivalents")
    assert row["budget"] == 300  # FO's end: 100 steps x (1 + 2)
    at = [np.mean([true_val_loss("ZO", 8, 1e-3, s, seed) for seed in range(3)]) for s in (10, 20)]
    assert row["loss"] == pytest.approx(np.interp(300, [160, 320], at))
    assert row["FO_loss"] == pytest.approx(true_val_loss("FO", 0, 1e-2, 100, 1))
    assert (row["difference"], row["n"]) == (pytest.approx(row["loss"] - row["FO_loss"]), 3)
    assert pick(table, mode="ZO", q=8, kind="tokens")["budget"] == 25_600


def test_the_cost_of_a_backward_pass_is_a_parameter(sweep):
    table = curves.compare_equal_budgets(*sweep, backward_cost=1.0)
    assert pick(table, mode="ZO", q=8, kind="forward-pass equivalents")["budget"] == 200


def test_curves_without_a_common_range_are_not_compared(folder):
    write_run(folder, "FO", q=0, lr=1e-2, steps=20)
    run = write_run(folder, "ZO", q=8, lr=1e-3)
    lines = (folder / f"{run}.csv").read_text().splitlines()
    (folder / f"{run}.csv").write_text("\n".join([lines[0], *lines[7:]]) + "\n")  # starts at step 30
    row = pick(curves.compare_equal_budgets(*load(folder)), kind="steps")
    assert row[["budget", "loss", "difference"]].isna().all()


def test_a_setting_that_only_one_of_two_runs_has_makes_them_two_cells(folder):
    """Else they would pass for two seeds of one cell."""
    for rate in (None, 0.3):
        spec = {"mode": "Calibrate", "bp_learning_rate": rate}
        write_run(folder, "Calibrate", "full", 8, 1e-3, spec=spec, name=f"run_{rate}")
    best = stats.best_learning_rates(load(folder)[1])
    assert best["n"].tolist() == [1, 1]
    assert set(best["bp_learning_rate"].fillna(0)) == {0, 0.3}


def test_problems_of_different_size_are_never_compared(folder):
    write_run(folder, "FO", "full", 0, 1e-2, spec={"model_size": "20M"})
    write_run(folder, "ZO", "full", 8, 1e-3, spec={"model_size": "1M"})
    logs, runs = load(folder)
    assert stats.compare_methods(runs)["minus_FO"].isna().all()
    assert curves.compare_equal_budgets(logs, runs).empty


def test_costs_are_per_step(sweep):
    row = pick(stats.measure_costs(sweep[1]), mode="ZO", q=8)
    assert (row["runs"], row["forward_per_step"], row["peak_memory_mb"]) == (9, 16, 416)
    assert row["seconds_per_step"] == pytest.approx(0.16)


def test_the_cosine_law_is_the_spec_s():
    instruct = pd.Series({"mode": "Instruct", "q": 8})
    assert predict_cosine(instruct, {"cosine_target": 0.9}) == pytest.approx(0.9 / np.sqrt(0.81 + 0.19 / 8))
    assert predict_cosine(instruct, {"cosine_target": 0.9, "blend_bp_gradient": 0.5}) is None
    zo = pd.Series({"mode": "ZO", "q": 8})
    assert predict_cosine(zo, {"trainable_parameters": 1000}) == pytest.approx(np.sqrt(8 / 1007))
    assert predict_cosine(zo, {}) is None


def test_a_tokenizer_that_comes_with_the_model_is_not_told_twice(folder):
    for size, tokenizer in (("100k", "bpe"), ("20M", "gpt2")):
        spec = {"model_size": size, "tokenizer": tokenizer}
        write_run(folder, "FO", lr=1e-2, spec=spec, name=f"FO_{size}")
    assert stats.list_context(load(folder)[1]) == ["scope", "model_size"]
    write_run(folder, "FO", lr=1e-2, spec={"model_size": "20M", "tokenizer": "bytes"}, name="FO_bytes")
    assert stats.list_context(load(folder)[1]) == ["scope", "model_size", "tokenizer"]
