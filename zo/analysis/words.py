"""The report's terms, a line each: a page says what the ones mean that occur in it."""

from collections.abc import Iterable

from zo.analysis.collect import Reading

MODES = {
    "FO": "first order: the gradient of the loss, by backprop.",
    "ZO": "zeroth order: forward passes alone, finite differences of the loss along q random directions.",
    "Calibrate": "ZO, with the backprop gradient in place of the estimate on every bp_interval-th step.",
    "Instruct": "ZO, with its directions drawn around a backprop gradient on every bp_interval-th step.",
    "LayerwiseFO": "the embedding by FO, then one block after another, each from new random weights, by FO.",
    "LayerwiseZO": "the same, but the blocks by ZO.",
    "Random": "control: makes ZO's estimate, then steps along independent noise of the same norm.",
    "Frozen": "control: the untrained model; reads the same batches, changes nothing.",
    "LayerwiseFrozen": "control: as LayerwiseFO, but the blocks keep their new random weights, untrained.",
}
SCOPES = {
    "full": "scope: all parameters are trained.",
    "reduced": "scope: the last block's MLP, the norm before it and the head, a matrix of its own.",
    "head": "scope: the head alone, a matrix of its own.",
    "norms": "scope: all norms.",
    "block<i>": "scope: block i alone, from 0.",
    "embedding": "scope: all outside the blocks: embedding with the tied head, positions, the last norm.",
}
Q = "directions (queries) of one ZO step; a two-sided one evaluates the loss 2q times."
BUDGET = "forward passes + {cost:g} x backward passes: the price of training; validation is counted in none."
SHARE = (
    "(Frozen - ZO) / (Frozen - FO), of losses at an equal budget: 0 is no better than untrained, 1 as good "
    "as FO. Layer by layer LayerwiseFrozen is the floor."
)
LAW = (
    "what holds exactly for a linear loss of d parameters and Gaussian directions: RMS cosine "
    "sqrt(q/(q+d-1)), squared length (d+q+1)/q; for one step's best rate, of FO's, on a quadratic "
    "q/(q+1+r). Others: docs/method.md."
)


def list_words(reading: Reading, quantities: Iterable[str]) -> list[tuple[str, str]]:
    """List the terms of a study's page, each with what it means. `quantities`: those that claims judge."""
    runs, tables = reading.runs, reading.tables
    scopes = {*runs["scope"].dropna(), *(tables["probes"]["scope"] if "probes" in tables else ())}
    kinds = {"block<i>" if scope.startswith("block") else scope for scope in scopes}
    modes = {*runs["mode"], "FO", "ZO"}  # the question's own
    words = [(mode, said) for mode, said in MODES.items() if mode in modes]
    words += [("q", Q)] * bool((runs["q"] > 0).any())
    words += [(scope, said) for scope, said in SCOPES.items() if scope in kinds]
    words += [("forward-pass equivalents", BUDGET.format(cost=reading.backward_cost))]
    words += [("share of FO's gain", SHARE)] * any("share of FO's gain" in text for text in quantities)
    return words + [("law", LAW)] * ("probes" in tables or bool(reading.logs.rows["cosine"].notna().any()))
