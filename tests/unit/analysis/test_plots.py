"""The plots: that each is a picture of something, and that no legend covers an axis or leaves the page."""

import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from made_runs import write_beside, write_crash, write_probe, write_run, write_sweep
from matplotlib.backends.backend_agg import FigureCanvasAgg

from zo.analysis.collect import WHOLE_PROCESS, read_folder
from zo.analysis.figures.captions import write_captions
from zo.analysis.figures.plots import FIGURES, write_plots
from zo.analysis.pareto import measure_pareto
from zo.analysis.runs import read_logs, summarize_runs
from zo.analysis.stats import name_method
from zo.errors import UserError
from zo.methods import METHODS

ALWAYS = [
    "loss_vs_steps",
    "loss_vs_forward_passes",
    "final_loss_vs_lr_by_q",
    "loss_heatmap_lr_q",
    "time_and_memory",
    "pareto_memory",
    "pareto_passes",
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "csv_logs"
    write_sweep(folder)
    write_probe(folder, "ZO_full_bs4_q8_lr1e-03")
    return folder


def test_every_plot_is_a_picture_of_something(sweep, tmp_path):
    paths = write_plots(sweep, tmp_path / "plots")
    assert [path.stem for path in paths] == [*ALWAYS, "cosine", "probes"]
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == sorted(p.name for p in paths)
    for path in paths:
        pixels = matplotlib.image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 300, path
        assert 0.01 < (pixels.min(axis=2) < 0.8).mean() < 0.9, path


@pytest.mark.parametrize("name", FIGURES)
def test_legends_lie_outside_the_axes_and_inside_the_figure(sweep, name):
    logs = read_logs(sweep)
    figure = FIGURES[name](logs, summarize_runs(logs))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, page = canvas.get_renderer(), figure.bbox
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    assert legends or name == "loss_heatmap_lr_q"
    for ax in figure.axes:
        box = ax.get_tightbbox(renderer)
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
    boxes = [ax.get_window_extent(renderer) for ax in figure.axes]
    for legend in legends:
        assert not any(legend.get_window_extent(renderer).overlaps(box) for box in boxes)


def test_titles_state_n_and_legends_the_chosen_learning_rate(sweep):
    logs = read_logs(sweep)
    figure = FIGURES["loss_vs_steps"](logs, summarize_runs(logs))
    assert figure.get_suptitle().endswith("n = 1 seed")
    assert [ax.get_title() for ax in figure.axes] == ["scope full", "scope reduced"]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [
        *("FO, lr 1e-02", "ZO q=1, lr 1e-04", "ZO q=8, lr 1e-03", "Calibrate q=8, lr 1e-03"),
        *("Instruct q=8, lr 1e-03", "Random q=8, lr 1e-04", "Frozen (untrained)"),
    ]


def test_curves_are_the_logged_validation_losses(sweep):
    logs = read_logs(sweep)
    line = FIGURES["loss_vs_steps"](logs, summarize_runs(logs)).axes[0].lines[0]
    logged = logs.frames["FO_full_bs4_q0_lr1e-02"].dropna(subset="val_loss")
    np.testing.assert_allclose(line.get_xydata(), logged[["step", "val_loss"]])


def test_the_same_logs_give_the_same_picture(sweep, tmp_path):
    first, second = (write_plots(sweep, tmp_path / name)[0].read_bytes() for name in "ab")
    assert first == second


def test_one_run_and_its_own_plot(tmp_path):
    write_run(tmp_path / "csv_logs", "ZO", "full", 1, 1e-4)
    paths = write_plots(tmp_path / "csv_logs", tmp_path / "plots", per_run=True)
    assert [path.stem for path in paths] == [*ALWAYS, "ZO_full_bs4_q1_lr1e-04"]
    assert paths[-1].parent == tmp_path / "plots" / "runs"


def test_nothing_finished_gives_panels_that_say_so(tmp_path):
    folder = tmp_path / "csv_logs"
    write_crash(folder, "ZO_full_bs4_q1_lr1e-05", ["boom"])
    write_run(folder, "FO", "full", 0, 1e-1, diverges_at=1)
    paths = write_plots(folder, tmp_path / "plots", per_run=True)
    assert len(paths) == 9
    logs = read_logs(folder)
    figure = FIGURES["loss_vs_steps"](logs, summarize_runs(logs))
    assert "1 crashed" in figure.axes[0].texts[0].get_text()


def test_many_panels_are_cut_and_the_title_says_so(tmp_path):
    for i in range(14):
        write_run(tmp_path / "csv_logs", "ZO", f"block{i}", 1, 1e-4, steps=20)
    logs = read_logs(tmp_path / "csv_logs")
    figure = FIGURES["loss_vs_steps"](logs, summarize_runs(logs))
    assert "first 12 of 14 panels" in figure.get_suptitle()


def test_an_axis_that_varies_for_one_method_alone_is_drawn_all_the_same(tmp_path):
    folder = tmp_path / "csv_logs"
    for batch_size in (4, 8):
        write_run(folder, "FO", "full", 0, 1e-2, batch_size=batch_size)
    write_run(folder, "ZO", "full", 8, 1e-3)
    assert [path.stem for path in write_plots(folder, tmp_path / "plots")][: len(ALWAYS)] == ALWAYS


def test_labels_name_no_setting_that_a_method_does_not_read(tmp_path):
    folder = tmp_path / "csv_logs"
    for mode, q, lr in (("FO", 0, 1e-2), ("ZO", 8, 1e-3), ("Frozen", 0, 1e-3)):
        for epsilon in (1e-3, 1e-2):
            run = write_run(folder, mode, "full", q, lr, seed=int(epsilon > 1e-3))
            spec = {"mode": mode, "epsilon": epsilon, "optimizer": "sgd", "log_interval": 5}
            write_beside(folder, run, "spec.json", spec)
            write_beside(folder, run, "manifest.json", {"trainable_parameters": int(1 / epsilon)})
    runs = summarize_runs(read_logs(folder))
    assert runs.loc[runs["mode"] != "ZO", "optimizer"].isna().tolist().count(True) == 2  # Frozen's
    assert not {"trainable_parameters"} & set(runs.columns)
    labels = {name_method(row, runs) for _, row in runs.iterrows() if row["mode"] != "ZO"}
    assert labels == {"FO", "Frozen"}


def test_captions_leave_out_what_was_not_logged(tmp_path):
    folder = tmp_path / "csv_logs"
    for mode, q in (("FO", 0), ("ZO", 1)):
        write_run(folder, mode, q=q, lr=1e-4, seconds="")
    assert write_captions(read_folder(folder))["time_and_memory"].conclusions == [
        "reduced: a ZO step with q = 1 takes 0.447 times an FO run's memory.",
        WHOLE_PROCESS,
    ]
    assert write_captions(read_folder(folder))["pareto_memory"].conclusions[-1] == WHOLE_PROCESS
    for mode, q in (("FO", 0), ("ZO", 1)):
        write_run(folder, mode, q=q, lr=1e-4, seconds="", peak_memory_mb="")
    nothing = ["No finished run has what this figure needs."]
    assert write_captions(read_folder(folder))["time_and_memory"].conclusions == nothing


def test_captions_name_the_methods_whose_every_rate_diverged(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, "FO", q=0, lr=1e-1, diverges_at=10)
    for lr in (1e-5, 1e-4, 1e-3):
        write_run(folder, "ZO", q=1, lr=lr)
    [said] = write_captions(read_folder(folder))["final_loss_vs_lr_by_q"].conclusions
    assert said.endswith("Every best rate lies inside its grid. No rate finished in every seed: FO.")


def test_captions_call_no_control_tuned(tmp_path):
    folder = tmp_path / "csv_logs"
    for lr in (1e-3, 1e-2, 1e-1):
        write_run(folder, "FO", q=0, lr=lr)
    for mode, q in (("Random", 8), ("LayerwiseFrozen", 0), ("Frozen", 0)):
        write_run(folder, mode, q=q, lr=1e-3)
    [said] = write_captions(read_folder(folder))["final_loss_vs_lr_by_q"].conclusions
    assert said == "reduced: best at FO 1e-02. Every best rate lies inside its grid."


def test_captions_name_every_q_at_the_budget_it_shares_with_fo(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, "FO", q=0, lr=1e-2)
    for q, steps in ((1, 200), (8, 50)):
        write_run(folder, "ZO", q=q, lr=1e-4, steps=steps)
    write_run(folder, "Random", q=8, lr=1e-4)
    [said] = write_captions(read_folder(folder))["loss_vs_steps"].conclusions
    named = re.findall(r"(\S+ \S+) is [\d.]+ (above|below) FO,[^()]*\(at (\d+)\)", said)
    assert named == [("ZO q=1", "above", "100"), ("ZO q=8", "above", "50")]


def test_the_heat_maps_caption_counts_the_diverged_runs_of_every_q(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, "ZO", q=1, lr=1e-4)
    for seed in (0, 1):
        write_run(folder, "ZO", q=8, lr=1e-1, seed=seed, diverges_at=10)
    [said] = write_captions(read_folder(folder))["loss_heatmap_lr_q"].conclusions
    assert "is at q = 1, lr 1e-04; ZO runs that diverged: 2." in said
    write_run(folder, "ZO", q=1, lr=1e-4, diverges_at=10)
    [said] = write_captions(read_folder(folder))["loss_heatmap_lr_q"].conclusions
    assert said == "reduced: no rate finished in every seed; ZO runs that diverged: 3."


def test_a_front_of_one_point_is_drawn_and_a_place_without_a_panel_stays_empty(tmp_path):
    folder = tmp_path / "csv_logs"
    for scope in ("full", "reduced", "head"):
        write_run(folder, "ZO", scope, 8, 1e-3, steps=10, every=10)
    logs = read_logs(folder)
    for name in ("pareto_memory", "pareto_passes"):
        figure = FIGURES[name](logs, summarize_runs(logs))
        *panels, empty = figure.axes
        for ax in panels:
            [front] = [line for line in ax.lines if line.get_label() == "front"]
            assert len(front.get_xdata()) == 1
            assert front.get_marker() == "o"
        assert not empty.get_legend()
        assert not empty.axison


def test_every_method_of_the_rates_legend_has_a_mark(tmp_path):
    folder = tmp_path / "csv_logs"
    for mode in METHODS:
        write_run(folder, mode, "full", 8, 1e-3)
    logs = read_logs(folder)
    [ax] = FIGURES["final_loss_vs_lr_by_q"](logs, summarize_runs(logs)).axes
    marks = {line.get_label().split()[0]: line.get_marker() for line in ax.lines if len(line.get_xdata())}
    assert set(marks) == set(METHODS) - {"Frozen"}
    assert len(set(marks.values()) - {"", "None", None}) == len(marks)


def test_the_drawn_front_is_the_one_of_the_table(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, "FO", "full", 0, 1e-2)
    write_run(folder, "ZO", "full", 8, 1e-3)
    logs = read_logs(folder)
    runs = summarize_runs(logs)
    table = measure_pareto(logs, runs).set_index("mode")
    memory, passes = (
        FIGURES[name](logs, runs).axes[0].lines[-1] for name in ("pareto_memory", "pareto_passes")
    )
    assert memory.get_label() == passes.get_label() == "front"
    np.testing.assert_allclose(
        memory.get_xydata(), [[416, table.loc["ZO", "loss"]], [900, table.loc["FO", "loss"]]]
    )
    assert passes.get_xdata()[0] == table.loc["FO", "passes_from"]
    assert passes.get_xdata()[-1] == table.loc["FO", "passes_to"]


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_figures_for_papers_are_the_same_bytes_twice(tmp_path, format):
    write_run(tmp_path / "csv_logs", "ZO", "full", 8, 1e-3)
    first, second = (write_plots(tmp_path / "csv_logs", tmp_path / name, format=format) for name in "ab")
    assert first[0].suffix == f".{format}"
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with pytest.raises(UserError, match="allowed: png, svg, pdf"):
        write_plots(tmp_path / "csv_logs", tmp_path, format="gif")


def test_a_control_that_blows_up_does_not_flatten_the_loss_axis_and_each_model_has_its_own(tmp_path):
    folder = tmp_path / "csv_logs"
    for size, higher in (("100k", 0.0), ("20M", 5.0)):
        for mode, q in (("FO", 0), ("ZO", 8), ("Frozen", 0), ("Random", 8)):
            run = write_run(folder, mode, "full", q, 1e-2, spec={"model_size": size}, name=f"{mode}_{size}")
            frame = pd.read_csv(folder / f"{run}.csv")
            frame["val_loss"] += higher
            if run == "Random_100k":
                frame.loc[frame["step"].between(40, 60), "val_loss"] = 1e6
            frame.to_csv(folder / f"{run}.csv", index=False)
    logs = read_logs(folder)
    figure = FIGURES["loss_vs_steps"](logs, summarize_runs(logs))
    limits = {ax.get_title(): ax.get_ylim() for ax in figure.axes if ax.lines}
    [small] = [span for title, span in limits.items() if "100k" in title]
    [large] = [span for title, span in limits.items() if "20M" in title]
    assert 2 < small[0] < 3
    assert 6 < small[1] < 8
    assert large[0] == pytest.approx(small[0] + 5, abs=0.6)
    figure = FIGURES["loss_heatmap_lr_q"](logs, summarize_runs(logs))
    scales = [ax.collections[0].get_clim() for ax in figure.axes if ax.get_title()]
    assert scales[1] == pytest.approx([end + 5 for end in scales[0]])


def test_a_curve_that_leaves_the_axis_and_comes_back_is_explained(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, "FO", "full", 0, 1e-2)
    run = write_run(folder, "ZO", "full", 8, 1e-3)
    frame = pd.read_csv(folder / f"{run}.csv")
    frame.loc[frame["step"].between(40, 60), "val_loss"] = 1e6
    frame.to_csv(folder / f"{run}.csv", index=False)
    logs = read_logs(folder)
    for name in ("loss_vs_steps", "loss_vs_forward_passes"):
        [ax] = FIGURES[name](logs, summarize_runs(logs)).axes
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == ["FO, lr 1e-02", "ZO q=8, lr 1e-03\n(leaves the axis: to 1e+06)"]
