"""What a run will take, told from its spec alone: parameters, checkpoint, memory, passes, work.

The counts are exact (tests/unit/planning/test_footprint.py builds the models); memory is an estimate.
Nothing here imports torch: the workflow asks before its first run.
"""

import math

from zo.engine.plan import decide_plan
from zo.methods import METHODS, needs_dense_gradient, uses_backprop
from zo.sizes import BYTES_VOCABULARY, GPT2_VOCABULARY, Shape, model_shape, parse_scope
from zo.spec import RunSpec

FLOAT = 4
"""Bytes: all but weights that a run asks to have in bf16 is fp32."""
PROCESS_BYTES = 420 * 2**20
"""Of a training process before its model: Python, torch, transformers. Measured: 400 MiB resident."""
STATES = {"sgd": 0, "adam": 2, "adamw": 2, "muon": 2, "mudamw": 2}
"""Tensors that an optimizer keeps for each trained one, at most: Muon keeps one for hidden matrices."""
LOGIT_COPIES = 3
"""The logits, their log-softmax and its gradient or a second evaluation's logits."""
PASS_OVERHEAD = 2.5e7
"""What a forward pass takes however small it is, in tokens x parameters. Measured with the 100k model on one
CPU thread: 1.9 ms a pass and 7.8 us a token, so that a batch of 1 is far from a quarter of a batch of 4."""
NOMINAL_TOKENS = 1e8
"""Of a corpus; the true number is not known before its cache is built, and is one for all runs of a study."""
CUDA_PROCESS_BYTES = 4 * 2**30
"""Of host memory, for torch's CUDA libraries, their context and pinned buffers. Not measured."""
LAUNCHER_BYTES = 600 * 2**20
"""Of a cluster's job beside the run: two Snakemakes that know the whole study. Measured: 160 MiB each for a
study of 1 run, 270 for 10,000."""
MEMORY_MARGIN = 1.5
"""What a cluster is asked for over the estimate, which lay up to 23 % under the measured peaks."""
BACKWARD_COST = 2
"""Forward passes that a backward pass counts as."""
MEASURED_THREAD_RATES = (1.3e10, 2.8e10)
"""Tokens x parameters that a CPU thread puts through forward passes in a second: 100k model, 20M."""
THREAD_RATE, GPU_RATE = 5e9, 5e11
"""The same of a thread and of a GPU (1 TFLOP/s; none was measured), low on purpose: a time limit must not be
missed."""
PASS_S = 0.01
"""A pass takes at least so long, on a GPU launching its kernels."""
FLOOR_MINUTES = 30
"""Of a time limit: start-up on a slow file system, checkpoints."""


def vocabulary(spec: RunSpec) -> int:
    """Size of the vocabulary; that of a tokenizer from a hub is not known here, GPT-2's is assumed."""
    return spec.vocab_size or (BYTES_VOCABULARY if spec.tokenizer == "bytes" else GPT2_VOCABULARY)


def count_parameters(spec: RunSpec) -> tuple[int, int]:
    """All parameters of a run's model and the trained ones; a tied head counts once."""
    shape, scope = model_shape(spec.model_size, spec.architecture), parse_scope(spec.scope)
    embedding = vocabulary(spec) * shape.width
    norm, mlp, attention, positions = _PARTS[spec.architecture](shape)
    block = attention + mlp + 2 * norm
    total = embedding + positions + shape.layers * block + norm
    match scope.kind:
        case "full":
            return total, total
        case "norms":
            return total, (2 * shape.layers + 1) * norm
        case "block":
            return total, block
        case "embedding":
            return total, total - shape.layers * block
        case "head":
            return total + embedding, embedding  # untied: the head is a copy of its own
    return total + embedding, embedding + mlp + norm


def _gpt2_parts(shape: Shape) -> tuple[int, int, int, int]:
    w, inner = shape.width, shape.inner
    return 2 * w, 2 * w * inner + inner + w, 4 * w * w + 4 * w, shape.positions * w


def _llama_parts(shape: Shape) -> tuple[int, int, int, int]:
    w, inner = shape.width, shape.inner
    return w, 3 * w * inner, 4 * w * w, 0


_PARTS = {"gpt2": _gpt2_parts, "llama": _llama_parts}


def checkpoint_bytes(spec: RunSpec) -> int:
    """Of one checkpoint: the trained parameters and the optimizer's state for each of them."""
    states = max(STATES[spec.optimizer], int(spec.momentum > 0)) if METHODS[spec.mode].uses else 0
    return count_parameters(spec)[1] * weight_bytes(spec) + trained_at_once(spec) * FLOAT * states


def trained_at_once(spec: RunSpec) -> int:
    """Parameters of a run's largest phase: no gradient and no optimizer's state is of more."""
    method = METHODS[spec.mode]
    cycle = method.cycle(spec)
    scopes = {method.phase(spec, step, cycle).scope for step in range(1, cycle + 1)}
    return max(count_parameters(spec.model_copy(update={"scope": scope}))[1] for scope in scopes)


def weight_bytes(spec: RunSpec) -> int:
    """Of one stored number of a matrix."""
    return FLOAT if spec.weights == "fp32" else 2


def memory_bytes(spec: RunSpec, device: str = "cpu") -> int:
    """Estimate what one process of a run holds: itself, weights, gradient, optimizer state, logits in flight.

    Several ranks hold the weights each, and share out what is in flight. Activations are counted as twice the
    logits' inputs per layer: an estimate to plan with, not a bound.
    """
    total, trained = count_parameters(spec)
    dense = trained_at_once(spec) if needs_dense_gradient(spec) else 0
    shape = model_shape(spec.model_size, spec.architecture)
    dense *= 2 if spec.ranks > 1 and uses_backprop(spec.mode) else 1  # DDP holds a copy to send
    members = members_in_flight(spec, device)
    tokens = members * max(
        spec.batch_size * spec.block_size // spec.gradient_accumulation,
        min(spec.batch_size, spec.validation_blocks) * spec.validation_block_size // members,
    )
    logits = LOGIT_COPIES * tokens * vocabulary(spec)
    activations = tokens * shape.layers * (4 * shape.width + 2 * shape.inner)
    frozen = weight_bytes(spec) * (total - trained)
    return PROCESS_BYTES + checkpoint_bytes(spec) + frozen + FLOAT * (dense + logits + activations)


def members_in_flight(spec: RunSpec, device: str) -> int:
    """Copies of the batch in one forward pass: directions in flight, both signs."""
    if not spec.query_budget_q:
        return 1
    signs, tokens = 2 if spec.sides == "two" else 1, spec.batch_size * spec.block_size
    own = -(-spec.query_budget_q // spec.ranks)
    settings = {"q": own, "signs": signs, "tokens": tokens, "vocab_size": vocabulary(spec)}
    plan, _ = decide_plan(spec.plan, spec.parallel_batch_size, device=device, **settings)
    return signs * plan.directions_in_flight if plan.kind == "parallel" else 1


def passes_per_step(spec: RunSpec) -> tuple[float, float]:
    """Forward and backward passes of a step; the mean over the method's cycle."""
    method = METHODS[spec.mode]
    cycle = method.cycle(spec)
    steps = range(1, cycle + 1)
    forwards = sum(method.forward_passes(spec, step, cycle) for step in steps)
    return forwards / cycle, sum(method.backward_passes(spec, step, cycle) for step in steps) / cycle


def count_passes(spec: RunSpec, corpus_tokens: float = NOMINAL_TOKENS) -> float:
    """Forward passes of a run's whole batch, to its end; a backward pass counts as two."""
    forwards, backwards = passes_per_step(spec)
    return count_steps(spec, corpus_tokens) * (forwards + BACKWARD_COST * backwards)


def count_steps(spec: RunSpec, corpus_tokens: float) -> float:
    """Length of a run in steps, about: not a whole number of them."""
    if spec.max_forwards:
        return spec.max_forwards / passes_per_step(spec)[0]
    batch = spec.batch_size * spec.block_size
    return spec.max_steps or (spec.max_tokens or spec.epochs * corpus_tokens) / batch


def validation_passes(spec: RunSpec, steps: float) -> float:
    """Forward passes of the batch that a run's validations in so many steps are worth, by their tokens."""
    share = spec.validation_blocks * spec.validation_block_size / (spec.batch_size * spec.block_size)
    return (1 + math.ceil(steps / spec.validation_interval)) * share


def pass_work(spec: RunSpec) -> float:
    """Tokens x parameters of one forward pass of the batch. Twice that are its FLOPs, attention's own apart.

    The parameters are those that each token is multiplied with: an embedding beside its own head is not.
    """
    embedding = vocabulary(spec) * model_shape(spec.model_size, spec.architecture).width
    untied = parse_scope(spec.scope).kind in ("head", "reduced")
    return spec.batch_size * spec.block_size * (count_parameters(spec)[0] - untied * embedding)


def sharing_ranks(spec: RunSpec) -> float:
    """How many ranks' work a step is done by: five directions on four ranks take as long as on three.

    What is shared are the directions, without any the sequences of the batch.
    """
    parts = spec.query_budget_q or spec.batch_size
    return parts / math.ceil(parts / spec.ranks)


def step_work(spec: RunSpec) -> float:
    """Predicted work of a step, for one rank: its passes, each for its tokens and for being one."""
    forwards, backwards = passes_per_step(spec)
    return (forwards + BACKWARD_COST * backwards) * (pass_work(spec) + PASS_OVERHEAD) / sharing_ranks(spec)


def relative_cost(spec: RunSpec) -> float:
    """Predicted work of a run, as ``step_work`` counts it, comparable within a study.

    A length in epochs is of a corpus of NOMINAL_TOKENS.
    """
    return count_passes(spec) * (pass_work(spec) + PASS_OVERHEAD) / sharing_ranks(spec)


def jobs_at_once(cores: int | None, threads: int, slots: int, gpus_per_run: int) -> int:
    """Processes that train at once on one machine: by its cores (None: there are enough) and its GPU slots.

    A run of one rank is one process.
    """
    limits = [] if cores is None else [cores // threads]
    limits += [slots // gpus_per_run] if slots and gpus_per_run else []
    return max(1, min(limits))


def job_memory_mb(spec: RunSpec, gpus: int) -> int:
    """MB of host memory that a run's job asks a cluster for, with a margin, in steps of 100.

    With GPUs the work is in theirs: the host holds the weights while they are made, and the checkpoint that
    a run goes on from.
    """
    made = FLOAT * count_parameters(spec)[0]  # weights are drawn in fp32, also those that are kept in bf16
    if gpus:
        own = CUDA_PROCESS_BYTES + made + checkpoint_bytes(spec)
    else:
        own = max(memory_bytes(spec), PROCESS_BYTES + made)
    return 100 * math.ceil((MEMORY_MARGIN * own * spec.ranks + LAUNCHER_BYTES) / 1e8)


def job_minutes(spec: RunSpec, gpus: int, threads: int, corpus_tokens: float = NOMINAL_TOKENS) -> int:
    """Minutes that a run's job asks a cluster for, from rates that it should beat (THREAD_RATE, GPU_RATE).

    ``gpus`` and ``threads`` are those of all its ranks together.
    """
    passes = count_passes(spec, corpus_tokens) + validation_passes(spec, count_steps(spec, corpus_tokens))
    rate = (gpus * GPU_RATE or threads * THREAD_RATE) * sharing_ranks(spec) / spec.ranks
    return FLOOR_MINUTES + math.ceil(passes * (PASS_S + pass_work(spec) / rate) / 60)
