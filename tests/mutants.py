"""Break the source in each known way and see that a test notices: ``python tests/mutants.py [--list] [name]``.

Each mutant is one text of one file of zo/ replaced in a copy of the tree, where its tests then run. A text
that is not found exactly once is an error: the source moved on and the mutant must follow.
"""

# ruff: noqa: E501 - one mutant a line

import argparse
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 150

NOISE = ("tests/unit/test_noise.py",)
PERTURBED = ("tests/unit/test_perturbed.py",)
ESTIMATE = ("tests/unit/test_estimate.py",)
ORACLE = (*ESTIMATE, "-k", "textbook or compact")
UNUSUAL = (*ESTIMATE, "-k", "members_cannot_share")
HALF = (*ESTIMATE, "-k", "half_precision")
GUIDANCE = ("tests/unit/test_guidance.py",)
LOWRANK = ("tests/unit/test_lowrank.py",)
ARCHITECTURES = ("tests/unit/test_architectures.py",)
MEMBERS = (*ARCHITECTURES, "-k", "members_loss and lowrank and dtype1")
SHARDS = (*ARCHITECTURES, "-k", "sides_and_shards")
CHECKPOINT = ("tests/unit/test_checkpoint.py",)
GPUS = ("tests/unit/test_gpus.py",)
RECORD = ("tests/unit/test_record.py",)
METHODS = "tests/contract/test_methods.py"
MEMORY = "tests/contract/test_memory.py"
REPLAY = "tests/contract/test_replay.py"
PATH = (METHODS, "-k", "textbooks_path")
LEDGER = (METHODS, "-k", "ledger")
JOB = "tests/unit/test_job.py"
STATUS = "tests/unit/test_status.py"
ARCHIVE = "tests/unit/test_archive.py"
PRUNE = ("tests/unit/test_prune.py",)
RESUME = (METHODS, "-k", "crashed and ZO")


class Mutant(NamedTuple):
    """``old`` becomes ``new`` in zo/``file``; ``tests`` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


IN_PLACE = """\
            for sign in (1, -1):
                for index, parameter in enumerate(parameters):
                    noise = directions.fill_(scratch.take(parameter)[0], query, index)
                    parameter.add_(noise.to(parameter.dtype), alpha=sign * scale)
                if sign == 1:
                    losses.append(objective.losses(own[None]))
"""
TERM_BY_TERM = """\
                for query, c in enumerate(self.coefficients.tolist()):
                    noise = self.directions.fill_(self._scratch.take(parameter)[0], query, index)
                    parameter.add_(noise.to(parameter.dtype), alpha=alpha * c / len(self.coefficients))
"""
FIRST_USE_ONLY = """\
        result = handler(self, *args, **kwargs)
        self._index = {key: i for key, i in self._index.items() if all(key != id(value) for value in args)}
        return result
"""

MUTANTS = [
    # The noise.
    Mutant("one seed for all tensors", "noise.py", "mix(self._key, query, parameter)", "mix(self._key, query)", NOISE),
    Mutant("one seed for all queries", "noise.py", "mix(self._key, query, parameter)", "mix(self._key, parameter)", NOISE),
    Mutant("one seed for all steps", "noise.py", "mix(seed, step, stream)", "mix(seed, stream)", NOISE),
    Mutant("32 bits of a key's parts", "noise.py", "(word & _MASK)) & _MASK", "(word & 0xFFFFFFFF)) & _MASK", NOISE),
    Mutant("torch's 32-bit CPU seed", "noise.py", "generator.set_state(_twister_state(key))", "generator.manual_seed(key & 0xFFFFFFFF)", NOISE),
    Mutant("state words misplaced", "noise.py", "[24 : 24 + 8 * _STATE_WORDS]", "[16 : 16 + 8 * _STATE_WORDS]", NOISE),
    Mutant("global RNG reseeded", "noise.py", "generator = _private_generator(device)", "generator = torch.manual_seed(key % 2**63)", NOISE),
    Mutant("control is the estimate's own noise", "noise.py", "stream=CONTROL)", "stream=DIRECTIONS)", NOISE),
    Mutant("signs of one half", "noise.py", ".mul_(2).sub_(1)", ".sub_(0.5)", NOISE),
    # The perturbed forward pass.
    Mutant("views share the noise buffer", "perturbed.py", "self._scratch if function in _CONSUMING else Scratch()", "self._scratch", UNUSUAL),
    Mutant("weight and bias share the noise buffer", "scratch.py", "        parts = flat[: sum(sizes)].split(sizes)\n", "        parts = [flat[:size] for size in sizes]\n", ORACLE),
    Mutant("all members get the first query's noise", "members.py", "if query != last_query:", "if last_query is None:", ORACLE),
    Mutant("member order swapped", "members.py", "for query, scale in self._members:", "for query, scale in reversed(self._members):", ORACLE),
    Mutant("positions interleaved wrongly", "perturbed.py", "out.repeat_interleave(mode.batch_size, dim=0)", "out.repeat(mode.batch_size, 1, 1)", ORACLE),
    Mutant("tied head perturbed twice", "perturbed.py", "torch.add(parameter, noise, alpha=self._scale, out=noise)", "torch.add(parameter, noise, alpha=self._scale * (2 if parameter.shape[0] > 40 and parameter.ndim == 2 else 1), out=noise)", ORACLE),
    Mutant("tied head not perturbed", "perturbed.py", "        return handler(self, *args, **kwargs)\n", FIRST_USE_ONLY, ORACLE),
    Mutant("unknown operations read the plain weights", "perturbed.py", "if handler is None:\n            raise UnsupportedOperation(function)", "if handler is None:\n            return function(*args, **kwargs)", UNUSUAL),
    Mutant("a view counts as metadata", "perturbed.py", "    torch.Tensor.size,\n", "    torch.Tensor.size,\n    torch.Tensor.t,\n", UNUSUAL),
    Mutant("sums over noise in half precision", "scratch.py", "dtype = torch.promote_types(likes[0].dtype, torch.float32)", "dtype = likes[0].dtype", HALF),
    Mutant("norm's bias not perturbed", "perturbed.py", "weight, bias = mode.vector(weight), mode.vector(bias)", "weight = mode.vector(weight)", PERTURBED),
    Mutant("a dropped bias", "members.py", "        if biases is None:\n            return out\n", "        if True:\n            return out\n", PERTURBED),
    # The estimate.
    Mutant("only the last query kept", "noise.py", "total.add_(self.fill_(scratch, query, parameter), alpha=weight)", "total.copy_(self.fill_(scratch, query, parameter)).mul_(weight)", ORACLE),
    Mutant("other noise in the update", "noise.py", "self.fill_(scratch, query, parameter)", "self.fill_(scratch, query + 1, parameter)", ORACLE),
    Mutant("no 1/(2 eps)", "estimate.py", "(losses[:, 0] - losses[:, 1]) / (2 * epsilon)", "losses[:, 0] - losses[:, 1]", ORACLE),
    Mutant("1/eps for two sides", "estimate.py", "/ (2 * epsilon)", "/ epsilon", ORACLE),
    Mutant("inverted sign", "estimate.py", "(losses[:, 0] - losses[:, 1])", "(losses[:, 1] - losses[:, 0])", ORACLE),
    Mutant("inverted sign of the compact update", "estimate.py", "parameter.add_(part, alpha=alpha)", "parameter.sub_(part, alpha=alpha)", ORACLE),
    Mutant("wrong base of one side", "estimate.py", "base = objective.losses(rows if sharded else None).double().cpu()", "base = losses[:1, 0].clone()", ORACLE),
    Mutant("no mean over q", "estimate.py", "(self.scale / len(self.coefficients))", "self.scale", ORACLE),
    Mutant("loss of the first member alone", "estimate.py", "losses.mean().item()", "losses[0].item()", ORACLE),
    Mutant("perturbed in place", "estimate.py", "            with Substituted(parameters, directions.fill_, scratch, query, scale):\n                losses.append(objective.losses(own[None]))\n", IN_PLACE, (*ESTIMATE, "-k", "bit_for_bit")),
    Mutant("half-precision update term by term", "estimate.py", "                parameter.copy_(parameter + part.mul_(alpha))\n", TERM_BY_TERM, HALF),
    Mutant("labels not shifted by the entry", "estimate.py", "labels[:, 1:].to(device)", "labels.to(device)", (*ESTIMATE, "-k", "shifts_the_labels")),
    Mutant("no seed is always seed 0", "estimate.py", "seed = torch.randint(2**62, ()).item()", "seed = 0", (*ESTIMATE, "-k", "without_a_seed")),
    Mutant("accumulated gradient not averaged", "estimate.py", "value * (scale / accumulation)", "value * scale", (*ESTIMATE, "-k", "backprop")),
    Mutant("noise of another norm in Random", "estimate.py", "self.norm(parameters) / noise.norm(parameters)", "1.0", (METHODS, "-k", "random_takes")),
    # Low-rank directions.
    Mutant("low-rank that is made dense in the parallel plan", "estimate.py", "            members = LowRankMembers(directions, scratch, queries, scales, rows.device)\n", "            pairs = [(query, scale) for query in queries for scale in scales]\n            members = DenseMembers(directions.fill_, scratch, pairs)\n", (*LOWRANK, "-k", "never_make")),
    Mutant("low-rank that is made dense in the update", "estimate.py", "        if not self.factored(parameter):\n", "        if True:\n", (*LOWRANK, "-k", "never_make")),
    Mutant("the update's scratch holds a dense matrix", "estimate.py", "_scratch=Scratch(dense, copies=2)", "_scratch=Scratch(parameters, copies=2)", (*LOWRANK, "-k", "never_make")),
    Mutant("a full-rank Gaussian under low-rank's name", "noise.py", "return torch.mm(u, v.T, out=out)", "return super().fill_(out, query, parameter)", (*LOWRANK, "-k", "exactly_its_rank")),
    Mutant("u and v swapped", "members.py", "outer, inner = (u, v) if out_first else (v, u)", "outer, inner = (u, v) if not out_first or u.shape != v.shape else (v, u)", MEMBERS),
    Mutant("u and v swapped in addmm", "members.py", "outer, inner = (u, v) if out_first else (v, u)", "outer, inner = (u, v) if out_first or u.shape == v.shape else (u, v)", MEMBERS),
    Mutant("u and v from swapped places", "noise.py", "u, v = part.split([shape[0] * self.rank, shape[1] * self.rank], dim=1)", "v, u = part.split([shape[1] * self.rank, shape[0] * self.rank], dim=1)", (*LOWRANK, "-k", "when_this_was_written")),
    Mutant("no 1/sqrt(r)", "noise.py", "(u / self.rank**0.5 if self.rank > 1 else u)", "u", (*LOWRANK, "-k", "second_moment")),
    Mutant("1/r for 1/sqrt(r)", "noise.py", "u / self.rank**0.5", "u / self.rank", ("tests/unit/test_laws.py", "-k", "one_matrix")),
    Mutant("one row of factors for all queries", "noise.py", "generator=_generator(device, mix(self._key, query))", "generator=_generator(device, mix(self._key, 0))", LOWRANK),
    Mutant("the rows kept are taken for any queries", "noise.py", "if self._rows[0] != queries or", "if not self._rows[0] or", LOWRANK),
    Mutant("weights of the update not applied to factors", "noise.py", "u = u * torch.tensor(weights, dtype=torch.float64).to(u)[:, None, None]", "u = u / len(weights)", LOWRANK),
    Mutant("weights of the update in fp32", "noise.py", "u = u * torch.tensor(weights, dtype=torch.float64)", "u = u * torch.tensor(weights)", (*LOWRANK, "-k", "dense_sum")),
    Mutant("eps in fp32", "members.py", "scales = torch.tensor(scales, device=device, dtype=torch.float64)", "scales = torch.tensor(scales, device=device)", (*ARCHITECTURES, "-k", "part_of_the_parameters")),
    Mutant("the update's norm without its cross terms", "estimate.py", "torch.sum((a.T @ a).double() * (b.T @ b).double()).item()", "torch.sum((a * a).sum(0).double() * (b * b).sum(0).double()).item()", (*LOWRANK, "-k", "dense_sum")),
    Mutant("sign of the second member dropped", "members.py", "left = (left.to(wide) * self._scales.to(wide)).to(out.dtype)", "left = (left.to(wide) * self._scales.abs().to(wide)).to(out.dtype)", MEMBERS),
    Mutant("signs outermost", "members.py", "scales.repeat(len(queries))[:, None, None]", "scales.repeat_interleave(len(queries))[:, None, None]", MEMBERS),
    Mutant("bias perturbation dropped", "members.py", "            bias = self.vector(bias, bias_index)[:, None]\n", "            pass\n", MEMBERS),
    Mutant("a frozen weight's own part left out with its bias", "members.py", "bias is None else bias.to(dtype)", "True else bias.to(dtype)", (*ARCHITECTURES, "-k", "part_of_the_parameters")),
    Mutant("output buffer reused within one pass", "members.py", "first = id(weight) not in self._seen ", "first = True ", (*ARCHITECTURES, "-k", "kept_from_pass")),
    Mutant("embedding's own part from the first direction", "members.py", "u[each, ids.reshape(len(u), -1)]", "u[0 * each, ids.reshape(len(u), -1)]", MEMBERS),
    Mutant("shard rows mixed up", "estimate.py", "return rows.view(q, -1)", "return rows.view(-1, q).t()", SHARDS),
    Mutant("shard rows repeated for signs the other way", "estimate.py", "rows[queries].repeat_interleave(len(scales), dim=0)", "rows[queries].repeat(len(scales), 1)", SHARDS),
    Mutant("a shard's targets are the batch's first", "estimate.py", "targets = self.targets[rows]", "targets = self.targets[: rows.shape[1]].expand(len(rows), -1, -1)", SHARDS),
    Mutant("one base for all shards", "estimate.py", "objective.losses(rows if sharded else None)", "objective.losses(None)", SHARDS),
    Mutant("a shard counted as a whole batch", "estimate.py", "losses.numel() // q if sharded else losses.numel()", "losses.numel()", LEDGER),
    Mutant("a shard's cost not foreseen", "methods.py", "        if spec.shard_batch:  # each direction reads its own 1/q of the batch\n            return 2\n", "", LEDGER),
    Mutant("rank not passed on", "methods.py", "state.parameters, spec.rank)", "state.parameters)", (*PATH[:2], "textbooks_path and rank")),
    # Directions around a gradient.
    Mutant("no 1/c^2", "guidance.py", "self.scale = 1 / cosine_target**2", "self.scale = 1.0", GUIDANCE),
    Mutant("noise not orthogonal to the gradient", "guidance.py", "(c - b * along) / norm", "c / norm", GUIDANCE),
    Mutant("directions scaled by sqrt(d)", "guidance.py", "return (c - b * along) / norm, b", "d = sum(g.numel() for g in self._gradient) ** 0.5\n        return d * (c - b * along) / norm, d * b", GUIDANCE),
    # The methods.
    Mutant("backprop one step late", "methods.py", "if state.step % state.spec.bp_interval:\n            return super().step(state, batch, guide)\n        loss,", "if (state.step - 1) % state.spec.bp_interval:\n            return super().step(state, batch, guide)\n        loss,", (METHODS, "-k", "on_the_interval")),
    Mutant("Random descends along the estimate", "methods.py", "return estimate.replaced_by_noise(state.parameters)", "return estimate", (METHODS, "-k", "random_takes")),
    Mutant("blend is a sum", "methods.py", "(ours + exact) / 2", "ours + exact", (*PATH[:2], "textbooks_path and blend")),
    Mutant("the same directions every step", "methods.py", "spec.seed, state.step, state.parameters", "spec.seed, 0, state.parameters", PATH),
    Mutant("learning rate not passed on", "methods.py", "set_learning_rate(state.optimizers, state.learning_rate)", "pass", (*PATH[:2], "textbooks_path and bp_learning_rate")),
    Mutant("the guide's data ignored", "methods.py", "_, gradient, passes = backpropagate(state.objective, guide, state.parameters)", "_, gradient, passes = backpropagate(state.objective, batch, state.parameters)", (METHODS, "-k", "other_corpus")),
    Mutant("backprop's forward pass not counted", "methods.py", "forward_passes=estimate.forward_passes + backward", "forward_passes=estimate.forward_passes", LEDGER),
    Mutant("base loss not foreseen", "methods.py", 'if spec.sides == "two" else spec.query_budget_q + 1', 'if spec.sides == "two" else spec.query_budget_q', LEDGER),
    Mutant("ledger off by one", "estimate.py", "losses.mean().item(), cost, ", "losses.mean().item(), cost - 1, ", LEDGER),
    Mutant("tokens evaluated once a step", "ledger.py", "+= report.forward_passes * batch_tokens", "+= batch_tokens", LEDGER),
    # The run.
    Mutant("labels not shifted in the trainer", "run.py", "blocks[:, 1:], PRECISIONS", "blocks[:, :-1], PRECISIONS", PATH),
    Mutant("dropout on", "models.py", "resid_pdrop=0.0", "resid_pdrop=0.1", (METHODS, "-k", "no_dropout")),
    Mutant("weights in half precision", "run.py", "        device=device,\n        gradient_checkpointing", "        device=device,\n        dtype=PRECISIONS[spec.precision],\n        gradient_checkpointing", (METHODS, "-k", "weights_stay")),
    Mutant("validation by the run's block size", "run.py", "validation_blocks(spec.validation_block_size", "validation_blocks(spec.block_size", (METHODS, "-k", "validation_reads")),
    Mutant("optimizer state not resumed", "run.py", 'unpack_state(self.state.optimizers, tensors, checkpoint.state["optimizers"])', "pass", RESUME),
    Mutant("ledger not resumed", "run.py", 'self.ledger = Ledger(**checkpoint.state["ledger"])', "self.ledger.step = checkpoint.step", RESUME),
    Mutant("logs not cut back", "record.py", "file.truncate(length)\n    file.seek(length)", "file.seek(0, 2)", RESUME),
    Mutant("changed settings ignored", "train.py", "if resolved != then.model_copy(update=plan):", "if False:", (METHODS, "-k", "starts_over")),
    Mutant("no checkpoint at a signal", "train.py", "if last or stop.received or ledger.step", "if last or ledger.step", (METHODS, "-k", "a_signal")),
    Mutant("NaN trained on", "train.py", "if not math.isfinite(report.loss):", "if False:", (METHODS, "-k", "no_number")),
    Mutant("high losses need not be in a row", "train.py", "if report.loss > limit else 0", "if report.loss > limit else run.ledger.high_steps", (METHODS, "-k", "above_chance")),
    # The launcher.
    Mutant("a slot's lock not asked", "gpus.py", "if not try_hold(files[-1], shared):", "if False:", GPUS),
    Mutant("a GPU alone shared all the same", "gpus.py", "[(own, slots > 1),", "[(own, True),", GPUS),
    Mutant("a locked slot forgotten", "gpus.py", "        _held.extend(file for files in taken.values() for file in files)\n", "        _close(file for files in taken.values() for file in files)\n", GPUS),
    # The checkpoint.
    Mutant("checksum not verified", "checkpoint.py", 'if _checksum(metadata["zo"], tensors) != metadata["sha256"]:', "if False:", CHECKPOINT),
    Mutant("only the newest checkpoint kept", "checkpoint.py", "KEPT = 2", "KEPT = 1", CHECKPOINT),
    Mutant("the oldest checkpoint loaded", "checkpoint.py", ", reverse=True)", ")", CHECKPOINT),
    # The sweep as others see it.
    Mutant("events written over one another", "job.py", " | os.O_APPEND", "", (JOB, "-k", "many_processes")),
    Mutant("a lock is not looked at", "status.py", "if _is_locked(", "if False and (", (STATUS, "-k", "while_its_process")),
    Mutant("a slow run elsewhere is lost", "status.py", "max(SILENT_S, 5 * _usual_gap(rows))", "SILENT_S", (STATUS, "-k", "between_two_rows")),
    Mutant("half a row read", "status.py", '.split("\\n")[1:-1]', '.split("\\n")[1:]', (STATUS, "-k", "half_a_row")),
    Mutant("a reused process number", "sweep_record.py", "return same and", "return", (STATUS, "-k", "at_work")),
    Mutant("a crashed run pruned", "prune.py", '("done", "diverged")', '("done", "diverged", "crashed")', PRUNE),
    Mutant("a run that trains pruned", "prune.py", "yield False\n                return", "pass", PRUNE),
    Mutant("times packed", "archive.py", "info.mtime, info.mode = os.fstat(content.fileno()).st_size, EPOCH, 0o644", "info.mtime, info.mode = os.fstat(content.fileno()).st_size, os.fstat(content.fileno()).st_mtime, 0o644", (ARCHIVE, "-k", "same_bytes")),
    Mutant("links packed", "archive.py", "if path.is_file() and not hidden and not any(part.is_symlink() for part in on_the_way)", "if path.is_file() and not hidden", (ARCHIVE, "-k", "no_regular_file")),
    Mutant("optimizer state not planned for", "footprint.py", "* (1 + states)", "", ("tests/unit/test_footprint.py", "-k", "checkpoint")),
    Mutant("a full disk only warns", "preflight.py", "if needed > free and certain:", "if False:", ("tests/unit/test_preflight.py", "-k", "disk")),
    Mutant("type and shape not hashed", "checkpoint.py", 'f"{name} {tensor.dtype} {list(tensor.shape)}\\n"', 'f"{name}"', CHECKPOINT),
    # What ends an attempt, and what the next one makes of it.
    Mutant("a full disk is a bug", "causes.py", "errno.ENOSPC, ", "", ("tests/contract/test_disk.py",)),
    Mutant("a bug is tried again", "crash.py", "(may_pass(exit_status) and not last_attempt)", "not last_attempt", RECORD),
    Mutant("a run outside the grid is recorded", "crash.py", " or not record or", " or", RECORD),
    Mutant("a plain kill halves", "attempt.py", 'if now["kills"] > then["kills"]:', "if True:", (MEMORY, "-k", "plain_kill")),
    Mutant("counts of another boot compared", "attempt.py", ' or then.get("boot") != now["boot"]', "", (MEMORY, "-k", "another_machine")),
    Mutant("the limit forgotten", "attempt.py", 'last["reductions"] if going_on else []', "[]", (MEMORY, "-k", "keeps_the_limit")),
    Mutant("the limit kept for ever", "attempt.py", 'same and last["ended"] not in ("done", "diverged")', "same", (MEMORY, "-k", "without_limits")),
    Mutant("parts that do not divide the batch", "attempt.py", "if spec.batch_size % n == 0", "if True", (MEMORY, "-k", "what_is_halved")),
    Mutant("a finished run repeated by a job that waited", "train.py", "if now == before or", "if True or", ("tests/contract/test_kills.py", "-k", "waited")),
    Mutant("any folder is a run's", "record.py", '[A-Za-z0-9.+_-]*", self.run)', '.*", self.run)', RECORD),
    Mutant("Random replayed along its estimate", "replay.py", "METHODS[state.spec.mode]().direction(state, estimate)", "estimate", (REPLAY, "-k", "Random")),
    Mutant("replay without the schedule", "replay.py", 'line["step"], line["learning_rate"]', 'line["step"], state.spec.learning_rate', (REPLAY, "-k", "cosine")),
    Mutant("backprop steps replayed", "replay.py", "if method.backward_passes(spec, step):", "if False:", (REPLAY, "-k", "backprop")),
]  # fmt: skip


def run_tests(tests: tuple[str, ...], mutant: Mutant | None = None) -> tuple[int, str]:
    """Exit status and output of pytest in a copy of the tree; call it in a process of its own."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        os.chdir(folder)
        for name in ("zo", "tests"):
            shutil.copytree(ROOT / name, name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", folder)
        if mutant:
            path = Path("zo", mutant.file)
            path.write_text(path.read_text().replace(mutant.old, mutant.new))
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder  # for tests that start processes
        import pytest

        import zo

        assert zo.__file__.startswith(folder), f"{zo.__file__} is not the copy"
        with redirect_stdout(io.StringIO()) as output:
            status = pytest.main(["-x", "-p", "no:cacheprovider", f"--timeout={LIMIT_S}", *tests])
        os.chdir(ROOT)
    return int(status), output.getvalue()


def check_mutant(mutant: Mutant) -> str | None:
    """What is wrong with the mutant itself, if anything."""
    source = (ROOT / "zo" / mutant.file).read_text()
    if (count := source.count(mutant.old)) != 1:
        return f"the old text is found {count} times in zo/{mutant.file}, not once"
    try:
        compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
    except SyntaxError as error:
        return f"the mutant is not Python: {error}"
    return None


def judge(mutant: Mutant, pool: Executor) -> str:
    """``killed``, ``SURVIVED``, or ``ERROR`` with its reason."""
    if complaint := check_mutant(mutant):
        return f"ERROR: {complaint}"
    status, output = pool.submit(run_tests, mutant.tests, mutant).result()
    if status in (0, 1):
        return "SURVIVED" if status == 0 else "killed"
    return f"ERROR: pytest ended with status {status}:\n{output[-1500:]}"


def judge_unmutated(mutants: list[Mutant], pool: Executor) -> str:
    """A kill means something only if the same tests pass on the source as it is."""
    status, output = pool.submit(run_tests, tuple(sorted({m.tests[0] for m in mutants}))).result()
    return "passes" if status == 0 else f"ERROR: these tests fail on the source as it is:\n{output[-3000:]}"


def make_pool() -> Executor:
    """Two workers, a fresh process each time, with the slow imports done once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True
    context = multiprocessing.get_context("forkserver")
    models = (f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "llama", "gemma2"))
    context.set_forkserver_preload(["torch", "scipy.stats", "pytest", "pydantic", "datasets", *models])
    return ProcessPoolExecutor(max_workers=2, mp_context=context, max_tasks_per_child=1)


def main() -> int:
    """Run the chosen mutants two at a time; exit status 1 unless every one was killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("filter", nargs="?", default="", help="part of a mutant's name or file")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    arguments = parser.parse_args()
    mutants = [m for m in MUTANTS if arguments.filter.lower() in f"{m.name} {m.file}".lower()]
    if arguments.list or not mutants:
        print(*(f"{m.file:14} {m.name}" for m in mutants), sep="\n")
        return 0 if mutants else 1
    start = time.monotonic()
    with make_pool() as pool, ThreadPoolExecutor(max_workers=2) as threads:
        unmutated = threads.submit(judge_unmutated, mutants, pool)
        verdicts = []
        for mutant, verdict in zip(mutants, threads.map(lambda m: judge(m, pool), mutants), strict=True):
            print(f"{verdict:10} {mutant.file:14} {mutant.name}", flush=True)
            verdicts.append(verdict)
        baseline = unmutated.result()
    killed = verdicts.count("killed")
    print(
        f"{killed} of {len(mutants)} killed in {time.monotonic() - start:.0f} s; without mutation: {baseline}"
    )
    return 0 if killed == len(mutants) and baseline == "passes" else 1


if __name__ == "__main__":
    sys.exit(main())
