"""What is read out of probes: averages, their laws, a bad eps, a figure and a page that show them."""

import re

import pytest
from made_runs import ESTIMATES, PROBED, write_probe, write_run

from zo.analysis.collect import read_folder
from zo.analysis.figures.plots import write_plots
from zo.analysis.probes import conclude, show_probes
from zo.analysis.report import render_report
from zo.analysis.summary import summarize


@pytest.fixture
def folder(tmp_path):
    """A folder of three runs, one of them probed."""
    folder = tmp_path / "csv_logs"
    spec = {"mode": "ZO", "epsilon": 1e-3, "trainable_parameters": PROBED}
    for mode, q in (("FO", 0), ("ZO", 4), ("Frozen", 0)):
        write_run(folder, mode, "full", q, 1e-3, spec=spec if mode == "ZO" else None)
    return folder


@pytest.fixture
def probed(folder):
    [run] = (path.stem for path in folder.glob("ZO*.csv"))
    write_probe(folder, run)
    return folder


def test_averages_are_root_mean_squares_of_cosines_and_means_of_all_else(probed):
    table = read_folder(probed).tables["probes"].set_index(["quantity", "q"])
    for q in (1, 4):
        row = table.loc[("cosine", q)]
        assert row["measured"] == pytest.approx(row["law"])  # the signs cancel in a mean, not in this
        assert row["n"] == ESTIMATES
        row = table.loc[("second_moment", q)]
        assert row["low"] < row["law"] < row["high"]
    row = table.loc[("best_rate", 1)]
    assert (row["measured"], row["n"]) == (pytest.approx(0.5), 2)  # what was not found is left out


def test_a_quantity_without_q_or_eps_shows_a_dash(probed):
    shown = show_probes(read_folder(probed).tables["probes"])
    assert set(shown["q"]) == {"-", "1", "4"}
    assert set(shown["eps"]) == {"-", "0.1", "0.001", "1e-06"}


def test_the_conclusion_says_how_far_the_law_is(probed):
    run = next(probed.glob("ZO*.csv")).stem
    write_probe(probed, run, cosine=0.5)
    said, explained = conclude(read_folder(probed).tables["probes"])
    n = ESTIMATES
    words = f"RMS cosine of g_hat with g is 0.500 times its law (0.500 to 0.500, n = {n}, q = 1)"
    assert f"{words}, which the interval excludes at 2 of 2 q; " in said
    assert re.search(rf"\|g_hat\|\S* / \S* is [01]\.\d+ times its law \([^;]*, n = {n}, q = [14]\); ", said)
    assert "best rate of a step, of FO's is 1.000 times its law (-1.541 to 3.541, n = 2, q = 1); " in said
    assert "slopes are most exact at eps 0.001 (an error of 1 %, n = 1)" in said
    assert "Each interval is of 95 % by itself" in explained


def test_a_quantity_that_no_batch_has_is_left_out_of_the_conclusion(probed):
    """A batch with g'Hg <= 0 has no best rate, and at the start all may be such."""
    table = read_folder(probed).tables["probes"]
    said, _ = conclude(table[table["quantity"] != "best_rate"])
    assert "RMS cosine" in said
    assert "best rate" not in said


def test_a_bad_eps_raises_a_guard_and_a_good_one_does_not(probed):
    run = next(probed.glob("ZO*.csv")).stem
    assert "epsilon" not in [finding.guard for finding in read_folder(probed).findings]
    write_probe(probed, run, errors={1e-2: 0.02, 1e-3: 0.4})
    [finding] = [f for f in read_folder(probed).findings if f.guard == "epsilon"]
    assert finding.where == run
    assert (
        "at its eps of 0.001 a finite difference is wrong by 40% of the slopes' RMS at the end"
        in finding.message
    )
    assert "least at eps 0.01, 2.0%" in finding.remedy


def test_figure_page_and_summary_show_them_and_nothing_without(probed, tmp_path):
    reading = read_folder(probed)
    assert "Diagnostics: estimates against the exact gradient" in summarize(reading)
    page = render_report(reading)
    assert 'id="diagnostics"' in page
    assert 'id="figure-probes"' in page
    assert "probes.png" in [path.name for path in write_plots(probed, tmp_path / "plots")]
    for path in (probed.parent / "probes").iterdir():
        path.unlink()
    reading = read_folder(probed)
    assert "Diagnostics" not in summarize(reading)
    assert 'id="diagnostics"' not in render_report(reading)
    write_plots(probed, tmp_path / "plots")
    assert not (tmp_path / "plots/probes.png").exists()
