"""Fronts and equal budgets, on points and runs whose answer is known by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import true_val_loss, write_run

from zo.analysis import curves
from zo.analysis.collect import read_folder
from zo.analysis.pareto import find_front
from zo.analysis.tables import show_budgets

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


def test_a_front_by_hand():
    cost, loss = [1, 2, 3, 4, 2, np.nan], [5, 3, 4, 1, 3, 0]
    assert find_front(cost, loss).tolist() == [True, True, False, True, True, False]
    assert find_front([], []).tolist() == []


@given(POINTS)
def test_a_front_is_what_its_definition_says(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    wanted = [not any(beats(other, point) for other in points) for point in points]
    assert find_front([p[0] for p in points], [p[1] for p in points]).tolist() == wanted


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "csv_logs"
    for seed in (0, 1, 2):
        write_run(folder, "FO", "full", 0, 1e-2, seed=seed)
        for q in (1, 8):
            write_run(folder, "ZO", "full", q, {1: 1e-4, 8: 1e-3}[q], seed=seed)
        write_run(folder, "Frozen", "full", 0, 1e-5, seed=seed)
    return folder


def test_the_fronts_of_a_study(folder):
    table = read_folder(folder).tables["pareto"].set_index(["mode", "q"])
    assert "Frozen" not in table.index
    assert table["peak_memory_mb"].to_dict() == {("FO", 0): 900, ("ZO", 1): 402, ("ZO", 8): 416}
    assert table["memory_front"].all()  # each needs less memory than all that lose less
    assert table["equivalents"].to_dict() == {("FO", 0): 300, ("ZO", 1): 200, ("ZO", 8): 1600}
    # FO's first measured point, 10 steps, costs 30; ZO q=1 has 20 by then and is first; q = 8 never leads.
    spans = table[["passes_from", "passes_to"]]
    assert spans.loc[("FO", 0)].tolist() == [30, 300]
    assert spans.loc[("ZO", 1)].tolist() == [20, 20]
    assert spans.loc[("ZO", 8)].isna().all()


def test_the_price_of_a_backward_pass_moves_the_front(folder):
    table = read_folder(folder, backward_cost=0.5).tables["pareto"].set_index(["mode", "q"])
    assert table.loc[("FO", 0), "passes_from"] == 15
    assert np.isnan(table.loc[("ZO", 1), "passes_from"])


def test_at_equal_peak_memory_fo_must_fit(folder):
    def compare():
        table = read_folder(folder).tables["equal_budgets"]
        return table[(table["kind"] == curves.MEMORY) & (table["q"] == 8)].iloc[0]

    row = compare()
    assert (row["budget"], row["n"], np.isnan(row["difference"])) == (416, 0, True)
    for seed in (0, 1, 2):  # an FO run that fits, at a worse rate
        write_run(folder, "FO", "full", 0, 1e-1, seed=seed, optimizer="adam", peak_memory_mb=416.0)
        for path in folder.glob("FO*lr1e-01*"):
            path.rename(path.with_name(f"adam{seed}_{path.name}"))
    row = compare()
    assert row["FO_loss"] == pytest.approx(true_val_loss("FO", 0, 1e-1, 100, 1))
    assert (row["FO_lr"], row["n"]) == (1e-1, 3)
    assert row["difference"] == pytest.approx(row["loss"] - row["FO_loss"])


def test_memory_that_fo_did_not_log_is_not_one_that_fo_does_not_fit_in(folder):
    for seed in (0, 1, 2):
        write_run(folder, "FO", "full", 0, 1e-2, seed=seed, peak_memory_mb="")
    reading = read_folder(folder)
    shown = show_budgets(reading.tables["equal_budgets"], reading.runs)["at equal peak memory"]
    assert set(shown) == {"not logged"}


def test_the_cost_of_a_loss_is_a_multiple_of_fos_with_its_interval(folder):
    table = read_folder(folder, targets=[5.0]).tables["convergence"].set_index(["mode", "q"])
    fo, zo = table.loc[("FO", 0)], table.loc[("ZO", 8)]
    assert zo["times_FO"] == pytest.approx(zo["equivalents"] / fo["equivalents"], rel=0.01)
    assert zo["times_FO_low"] < zo["times_FO"] < zo["times_FO_high"]
    assert np.isnan(fo["times_FO"])
