"""The probe against functions whose gradient, curvature and best step are known."""

import csv
import math
from collections import defaultdict

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from small_runs import run_zo, small_spec, write_corpus

from zo.engine import laws
from zo.engine.noise import make_noise
from zo.engine.objective import Objective, backpropagate
from zo.engine.probe import ProbeSettings, probe
from zo.models import build_model, select_scope
from zo.training.train import train

ROWS, COLUMNS = 4, 6
D = ROWS * (COLUMNS + 1)


@pytest.fixture
def quadratic(make_linear):
    """A function: objectives with L = y'Ay/2 + v.y at y = W x + b; v differs by noise of a given size."""

    def make(count=1, noise=0.0):
        model = make_linear(ROWS, COLUMNS)
        draw = torch.Generator().manual_seed(3)
        a = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
        found = []
        for _ in range(count):
            v = model.v + noise * torch.randn(ROWS, generator=draw, dtype=torch.float64)

            def loss(y, _, v=v):
                y = y.flatten()
                return y @ a.to(y.dtype) @ y / 2 + y @ v.to(y.dtype)

            found.append(Objective(model, loss, model.inputs, torch.zeros(1, 1)))
        return model, a, found

    return make


def probed(objectives, model, **settings):
    """Rows of a probe by quantity."""
    rows = defaultdict(list)
    settings = ProbeSettings(epsilons=(), **settings)
    for row in probe(objectives, list(model.parameters()), settings, seed=1):
        rows[row["quantity"]].append(row)
    return rows


def test_curvature_and_best_rates_are_a_quadratics_own(quadratic):
    model, a, objectives = quadratic()
    x = model.inputs["x"].flatten()
    y = (model.weight @ x + model.bias).detach()
    e = a @ y + model.v
    ratio = (a.trace() * e @ e / (e @ a @ e)).item()
    rows = probed(objectives, model, directions=2000, queries=(1, 4, 16))
    assert rows["curvature_ratio"][0]["value"] == pytest.approx(ratio, rel=0.05)  # Hutchinson's noise
    assert rows["best_rate_fo"][0]["value"] == pytest.approx(
        (e @ e / (e @ a @ e) / (x @ x + 1)).item(), rel=1e-6
    )
    for row in rows["best_rate"]:
        assert row["law"] == pytest.approx(laws.best_rate_ratio(row["q"], ratio), rel=0.05)


def test_the_line_search_finds_the_rate_that_the_law_predicts(quadratic, monkeypatch):
    monkeypatch.setattr("zo.engine.probe.SEARCHED", 2000)
    model, _, objectives = quadratic()
    rows = probed(objectives, model, directions=2000, queries=(1, 4, 16))["best_rate"]
    assert [row["q"] for row in rows] == [1, 4, 16]
    for row in rows:
        assert row["value"] == pytest.approx(row["law"], rel=0.15), row["q"]  # means of 2000/q estimates


def test_cosine_and_length_follow_the_laws(quadratic):
    model, _, objectives = quadratic()
    rows = probed(objectives, model, directions=2000, queries=(1, 5))
    for q in (1, 5):
        squares = np.array([row["value"] for row in rows["cosine"] if row["q"] == q]) ** 2
        assert len(squares) == 2000 // q
        assert squares.mean() == pytest.approx(
            q / (q + D - 1), abs=4 * squares.std() / math.sqrt(len(squares))
        )
        ratios = np.array([row["value"] for row in rows["second_moment"] if row["q"] == q])
        assert ratios.mean() == pytest.approx((D + q + 1) / q, abs=4 * ratios.std() / math.sqrt(len(ratios)))
        assert {row["law"] for row in rows["cosine"] if row["q"] == q} == {math.sqrt(q / (q + D - 1))}


@pytest.mark.parametrize(("family", "rank"), [("rademacher", 1), ("lowrank", 1), ("lowrank", 2)])
def test_other_families_have_their_own_second_moment(quadratic, family, rank):
    model, _, objectives = quadratic()
    rows = probed(objectives, model, directions=2000, queries=(1, 4), family=family, rank=rank)
    for q in (1, 4):
        own = [row for row in rows["second_moment"] if row["q"] == q]
        ratios = np.array([row["value"] for row in own])
        assert own[0]["law"] == pytest.approx(ratios.mean(), abs=4 * ratios.std() / math.sqrt(len(ratios)))
    assert own[0]["law"] != laws.second_moment(4, D)
    assert not rows["best_rate"]  # the law is the Gaussian's


@pytest.mark.parametrize("family", ["gaussian", "lowrank"])
def test_no_direction_is_one_that_a_run_of_its_seed_was_trained_along(quadratic, family):
    """At weights that were trained along them the slopes are those of what was learned, not of chance."""
    model, _, objectives = quadratic(count=3)
    parameters = list(model.parameters())
    rows = probed(objectives, model, directions=1, queries=(1,), family=family)["cosine"]
    found = {abs(row["value"]) for row in rows}
    _, gradient, _ = backpropagate(lambda o: objectives[0], objectives[0].targets, parameters)
    for step in range(4):
        noise = make_noise(family, 1, step, parameters)
        z = [noise.fill_(torch.empty_like(p, dtype=torch.float32), 0, i) for i, p in enumerate(parameters)]
        trained = abs(reference.cosine([part.double() for part in z], gradient))
        assert min(abs(value - trained) for value in found) > 1e-5


def test_a_bad_eps_shows_in_the_slopes_error():
    """Too large: curvature of third order, fourfold less at half; too small: rounding."""
    model = build_model("100k", "gpt2", 64, seed=0)
    parameters = [parameter for _, parameter in select_scope(model, "full")]
    ids = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
    objective = Objective(model, F.cross_entropy, {"input_ids": ids[:, :-1]}, ids[:, 1:])
    before, settings = [p.clone() for p in parameters], ProbeSettings((1,), (4e-3, 2e-3, 3e-4, 5e-8), 32)
    errors = {
        row["epsilon"]: row["value"]
        for row in probe([objective], parameters, settings, seed=0)
        if row["quantity"] == "slope_error"
    }
    assert errors[4e-3] == pytest.approx(4 * errors[2e-3], rel=0.2)
    assert errors[3e-4] < 0.05 < 0.5 < errors[5e-8]
    assert all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))


def test_the_noise_of_a_batchs_gradient_is_told_without_bias(quadratic):
    model, a, objectives = quadratic(count=2000, noise=2.0)
    x = model.inputs["x"].flatten()
    clean = a @ (model.weight @ x + model.bias).detach() + model.v
    gradients = [backpropagate(lambda _, o=o: o, o.targets, list(model.parameters()))[1] for o in objectives]
    from zo.engine.probe import _noise_share

    truth = 2.0**2 * ROWS / (clean @ clean).item()
    few = [_noise_share(gradients[i : i + 20]) for i in range(0, 2000, 20)]
    assert np.mean(few) == pytest.approx(truth, rel=0.1)
    assert _noise_share(gradients) == pytest.approx(truth, rel=0.1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A results folder with a ZO and an FO run."""
    folder = tmp_path_factory.mktemp("probed")
    corpus = write_corpus(folder)
    specs = [small_spec(corpus, mode) for mode in ("ZO", "FO")]
    for spec in specs:
        train(
            spec,
            folder / "results",
            device="cpu",
            threads=1,
            keep="nothing" if spec.mode == "ZO" else "weights",
        )
    return folder / "results", *specs


def test_a_run_is_probed_at_start_and_end_in_any_scope(finished):
    results, zo, fo = finished
    for spec in (zo, fo):  # ZO keeps no weights: its scalars give them
        flags = ("--at", "start,end", "--scopes", "full,norms,head", "--queries", "1,4")
        done = run_zo(
            "probe",
            results / "runs" / spec.name,
            *flags,
            "--directions",
            "8",
            "--batches",
            "2",
            "--threads",
            "1",
        )
        assert done.returncode == 0, done.stderr
        with open(results / "probes" / f"{spec.name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["at"], row["step"], row["scope"]) for row in rows} == {
            (at, step, scope)
            for at, step in (("start", "0"), ("end", "7"))
            for scope in ("full", "norms", "head")
        }
        assert len({row["d"] for row in rows}) == 3
        cosines = [row for row in rows if row["quantity"] == "cosine" and row["q"] == "4"]
        assert len(cosines) == 2 * 3 * 2 * 2  # places, scopes, batches, estimates
        norms = {
            row["at"]: float(row["value"])
            for row in rows
            if row["quantity"] == "gradient_noise" and row["scope"] == "full"
        }
        assert norms["start"] != norms["end"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scopes", "fulll"), "did you mean 'full'"),
        (("--at", "middle"), "place"),
        (("--queries", "1,128"), "--directions 64 is too few"),
        (("--batches", "0"), "--batches: '0' is not allowed"),
    ],
)
def test_a_mistake_is_one_line(finished, flags, message):
    results, zo, _ = finished
    done = run_zo("probe", results / "runs" / zo.name, *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_a_folder_that_is_no_run_is_said_so(tmp_path):
    done = run_zo("probe", tmp_path)
    assert done.returncode == 2
    assert "is not a run's folder" in done.stderr
