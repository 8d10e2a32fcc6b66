"""How ``auto`` lays out a step's evaluations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo.engine.plan import (
    CPU_LOGITS_BYTES,
    CPU_TOKENS,
    MOST_IN_FLIGHT,
    PAIR_LOGITS_BYTES,
    Plan,
    decide_plan,
)


def decide(kind="auto", in_flight=None, *, q=8, signs=2, tokens=256, vocab_size=512) -> Plan:
    plan, reason = decide_plan(kind, in_flight, q=q, signs=signs, tokens=tokens, vocab_size=vocab_size)
    assert reason
    return plan


def test_auto_is_parallel():
    assert decide(q=1) == Plan("parallel", 1)
    assert decide(q=2) == Plan("parallel", 2)
    assert decide(q=8, tokens=64) == Plan("parallel", 8)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_of_a_single_direction_auto_takes_the_signs_one_by_one_where_both_hold_much(device):
    both = 2 * 128 * 4  # bytes of logits for each word of the vocabulary
    most = PAIR_LOGITS_BYTES[device] // both
    for vocab, free, kind in (
        (most, None, "parallel"),
        (most + 1, None, "sequential"),
        (most, 3 * both * most, "sequential"),  # more than a quarter of the free memory
    ):
        shape = {"signs": 2, "tokens": 128, "vocab_size": vocab, "device": device, "free_bytes": free}
        assert decide_plan("auto", None, q=1, **shape)[0].kind == kind
    assert decide(q=1, tokens=1025).kind == "sequential"
    assert decide(q=2, tokens=1025).kind == "parallel"


def test_auto_keeps_at_most_eight_directions_in_flight_unless_asked():
    assert MOST_IN_FLIGHT == 8
    assert decide(q=100, tokens=64).directions_in_flight == 8
    assert decide(q=100, in_flight=50) == Plan("parallel", 50)


@given(
    q=st.integers(1, 99),
    signs=st.sampled_from([1, 2]),
    tokens=st.integers(1, 9999),
    vocab=st.integers(2, 10**5),
)
def test_the_tokens_and_logits_in_flight_on_a_cpu_are_as_many_as_their_bounds_allow(q, signs, tokens, vocab):
    n = decide(q=q, signs=signs, tokens=tokens, vocab_size=vocab).directions_in_flight
    one = signs * tokens * vocab * 4
    assert 1 <= n <= min(q, 8)
    assert n == 1 or (n * one <= CPU_LOGITS_BYTES and n * signs * tokens <= CPU_TOKENS)
    more = n + 1
    assert n == min(q, 8) or more * one > CPU_LOGITS_BYTES or more * signs * tokens > CPU_TOKENS
    plan, _ = decide_plan("auto", None, q=q, signs=signs, tokens=tokens, vocab_size=vocab, device="cuda")
    assert plan.directions_in_flight == min(q, 8)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_logits_in_flight_take_a_quarter_of_the_free_memory(device):
    one = 2 * 32 * 1000 * 4  # of both signs
    for free, n in ((4 * 3 * one, 3), (4 * 3 * one - 1, 2), (one, 1), (10**12, 8)):
        plan, reason = decide_plan(
            "auto", None, q=8, signs=2, tokens=32, vocab_size=1000, device=device, free_bytes=free
        )
        assert plan.directions_in_flight == n
        assert n == 8 or "free memory" in reason


@pytest.mark.parametrize("kind", ["auto", "sequential", "parallel"])
@given(q=st.integers(1, 99), asked=st.integers(1, 99))
def test_no_more_directions_are_in_flight_than_there_are(kind, q, asked):
    assert decide(kind, asked, q=q).directions_in_flight == min(q, asked)


@pytest.mark.parametrize("kind", ["sequential", "parallel"])
@pytest.mark.parametrize("q", [1, 64])
def test_a_plan_that_was_asked_for_is_taken(kind, q):
    assert decide(kind, q=q).kind == kind


def test_asking_for_directions_in_flight_asks_for_the_parallel_plan():
    assert decide(q=1, in_flight=4) == Plan("parallel", 1)


@given(q=st.integers(1, 99), tokens=st.integers(1, 9999))
def test_deciding_again_from_the_decision_changes_nothing(q, tokens):
    plan = decide(q=q, tokens=tokens, vocab_size=50257)
    assert decide(plan.kind, plan.directions_in_flight, q=q, tokens=tokens, vocab_size=50257) == plan
