"""Break the source in each known way and see that a test notices: ``python tests/mutants.py [--list] [name]``.

Each mutant is one text of one file of zo/ replaced in a copy of the tree, where its tests then run. A text
that is not found where it should be is an error: the source moved on and the mutant must follow.
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

PHILOX = ("tests/unit/engine/test_philox.py",)
NOISE = ("tests/unit/engine/test_noise.py",)
ELSEWHERE = (*NOISE, "-k", "off_the_cpu")
ROUNDING = ("tests/unit/engine/test_rounding.py",)
PERTURBED = ("tests/unit/engine/test_perturbed.py",)
BLOCKS = (*PERTURBED, "-k", "blocks")
ESTIMATE = ("tests/unit/engine/test_estimate.py",)
ORACLE = (*ESTIMATE, "-k", "textbook or compact")
PROBE = "tests/unit/engine/test_probe.py"
UNUSUAL = (*ESTIMATE, "-k", "members_cannot_share")
HALF = (*ESTIMATE, "-k", "half_precision")
GUIDANCE = ("tests/unit/engine/test_guidance.py",)
LOWRANK = ("tests/unit/engine/test_lowrank.py",)
PLAN = ("tests/unit/engine/test_plan.py",)
ARCHITECTURES = ("tests/unit/engine/test_architectures.py",)
MEMBERS = (*ARCHITECTURES, "-k", "members_loss and lowrank and dtype1")
SHARDS = (*ARCHITECTURES, "-k", "sides_and_shards")
CHECKPOINT = ("tests/unit/training/test_checkpoint.py",)
GPUS = ("tests/unit/sweep/test_gpus.py",)
RECORD = ("tests/unit/training/test_record.py",)
STUDY = ("tests/unit/test_study.py", "-k", "further or grids")
METHODS = "tests/contract/test_methods.py"
RANKS = "tests/contract/test_ranks.py"
PLACES = ("tests/unit/distributed/test_places.py",)
ENGINE = (RANKS, "-k", "estimate or fails or differ or heard")
RANK_RUNS = (RANKS, "-k", "two_ranks")
MEMORY = "tests/contract/test_memory.py"
REPLAY = "tests/contract/test_replay.py"
PATH = (METHODS, "-k", "textbooks_path")
LEDGER = (METHODS, "-k", "ledger")
LAYERS = "tests/contract/test_layerwise.py"
JOB = "tests/unit/training/test_job.py"
STATUS = "tests/unit/sweep/test_status.py"
ARCHIVE = "tests/unit/sweep/test_archive.py"
PRUNE = ("tests/unit/sweep/test_prune.py",)
KEPT = ("tests/unit/training/test_kept.py",)
STARTING_OVER = ("tests/unit/training/test_starting_over.py",)
FORECAST, PACE = ("tests/unit/planning/test_forecast.py",), ("tests/unit/planning/test_pace.py",)
MEASURE = ("tests/unit/planning/test_measure.py",)
FOOTPRINT = ("tests/unit/planning/test_footprint.py", "-k", "job or epoch or ledger")
INTERVALS = ("tests/unit/analysis/test_intervals.py",)
STATS = "tests/unit/analysis/test_stats.py"
RUNS = "tests/unit/analysis/test_runs.py"
GUARDS = ("tests/unit/analysis/test_guards.py",)
PARETO = ("tests/unit/analysis/test_pareto.py",)
REPORT = ("tests/unit/analysis/test_report.py",)
CLAIMS = "tests/unit/analysis/test_claims.py"
RESUME = (METHODS, "-k", "crashed and ZO")
MISTAKES = "tests/unit/cli/test_mistakes.py"
SUMMARY = "tests/unit/analysis/test_summary.py"
DATASET = "tests/unit/data/test_dataset.py"
BENCH = "tests/unit/bench/test_bench.py"


class Mutant(NamedTuple):
    """``old`` becomes ``new`` in zo/``file``, in so many places; ``tests`` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    places: int = 1


KEPT_FIRST = """\
    if logs and ledger.step in run.keep_steps:
        # Before the checkpoint: a run that goes on from it does not make these weights again.
        kept = checkpoint_path(make_folder(files.kept), ledger.step)
        write_checkpoint(kept, run.checkpoint(None))
    if last or told or ledger.step % spec.checkpoint_interval == 0:
        run.state.ranks.require_same(f"the weights at step {ledger.step}", run.weights_digest)
        if logs:
            save_checkpoint(files.checkpoints, run.checkpoint(logs.lengths()))
"""
KEPT_LAST = """\
    if last or told or ledger.step % spec.checkpoint_interval == 0:
        run.state.ranks.require_same(f"the weights at step {ledger.step}", run.weights_digest)
        if logs:
            save_checkpoint(files.checkpoints, run.checkpoint(logs.lengths()))
    if logs and ledger.step in run.keep_steps:
        # Before the checkpoint: a run that goes on from it does not make these weights again.
        kept = checkpoint_path(make_folder(files.kept), ledger.step)
        write_checkpoint(kept, run.checkpoint(None))
"""
IN_PLACE = """\
        if members.count == 1:
            for sign in (1, -1):
                for index, parameter in enumerate(parameters):
                    noise = directions.fill_(torch.empty(parameter.shape), queries[0], index)
                    parameter.add_(noise.to(parameter.dtype), alpha=sign * scales[0])
                if sign == 1:
                    losses.append(objective.losses(own))
            continue
        with Perturbed(parameters, members, rows.shape[1]) as perturbed:
"""
TERM_BY_TERM = """\
                for query, weight in enumerate(weights):
                    noise = self.fill_(total, query, parameter, rows.start)
                    part.add_(noise.to(part.dtype), alpha=alpha * weight)
"""
FIRST_USE_ONLY = """\
                result = handler(self, *args, **kwargs)
                self._index = {key: i for key, i in self._index.items() if all(key != id(arg) for arg in args)}
                return result
"""
FACTORS = """\
            inner = self._directions.split(self._factors, index)[out_first]
            outer = self._directions.split(self._signed, index)[not out_first]
"""

MUTANTS = [
    # The compiled generator.
    Mutant("nine rounds", "engine/philox.py", "for _ in range(10):", "for _ in range(9):", PHILOX),
    Mutant("multipliers swapped", "engine/philox.py", "_M0 * c0, _M1 * c2", "_M1 * c0, _M0 * c2", PHILOX),
    Mutant("key words swapped", "engine/philox.py", "k0, k1 = key & _LOW, key >> _32", "k0, k1 = key >> _32, key & _LOW", PHILOX),
    Mutant("half of a key dropped", "engine/philox.py", "k0, k1 = key & _LOW, key >> _32", "k0, k1 = key & _LOW, u8(0)", PHILOX),
    Mutant("one round key for all rounds", "engine/philox.py", "k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW", "k0, k1 = k0 & _LOW, k1 & _LOW", PHILOX),
    Mutant("counter's high word dropped", "engine/philox.py", "u8(counter) >> _32, u8(0), u8(0)", "u8(0), u8(0), u8(0)", PHILOX),
    Mutant("both normals of a pair alike", "engine/philox.py", "return first * x0, first * y0,", "return first * x0, first * x0,", PHILOX),
    Mutant("one radius for two pairs", "engine/philox.py", "_radius(a), _radius(c)", "_radius(a), _radius(a)", PHILOX),
    Mutant("an angle's bit used twice", "engine/philox.py", "(word & u4(0x40000000))", "(word & u4(0x80000000))", PHILOX),
    Mutant("a uniform number may be 0", "engine/philox.py", "(f4(i4(word >> u4(1))) + f4(0.5))", "f4(i4(word >> u4(1)))", PHILOX),
    Mutant("an unaligned start read from its counter's start", "engine/philox.py", "four[start % 4 + i]", "four[i]", PHILOX),
    Mutant("an unaligned start of the wrong length", "engine/philox.py", "min(len(out), -start % 4)", "min(len(out), start % 2)", PHILOX),
    Mutant("the counter of an unaligned start twice", "engine/philox.py", "first, whole = (start + head) // 4,", "first, whole = start // 4,", PHILOX),
    Mutant("the tail repeats the last whole counter", "engine/philox.py", "_four_normals(first + whole, k0, k1)", "_four_normals(first + whole - 1, k0, k1)", PHILOX),
    Mutant("the tail backwards", "engine/philox.py", "four[i - 4 * whole]", "four[len(body) - 1 - i]", PHILOX),
    Mutant("signs of one half", "engine/philox.py", "f4(i4(u4(word >> u4(first + i)) & u4(1)) * 2 - 1)", "f4(i4(u4(word >> u4(first + i)) & u4(1))) - f4(0.5)", PHILOX),
    Mutant("one word for two quarters of signs", "engine/philox.py", "_write_bits(out[i + 32 : i + 64], b, 0)", "_write_bits(out[i + 32 : i + 64], a, 0)", PHILOX),
    Mutant("unaligned signs from their word's first bit", "engine/philox.py", "quarter, first = element % 128 // 32, element % 32", "quarter, first = element % 128 // 32, 0 * element", PHILOX),
    Mutant("a whole counter of signs at any word", "engine/philox.py", "if element % 128 == 0 and", "if element % 32 == 0 and", PHILOX),
    Mutant("each part begins the stream anew", "engine/philox.py", "_fill(kind, out[lo:hi], start + lo, key)", "_fill(kind, out[lo:hi], start, key)", PHILOX),
    Mutant("a part ends one element early", "engine/philox.py", "(lo, min(lo + _PART, size))", "(lo, min(lo + _PART - 1, size))", PHILOX),
    Mutant("a thread makes its first part alone", "engine/philox.py", "in parts[first::threads]", "in parts[first : first + 1]", PHILOX),
    Mutant("row stride", "engine/philox.py", "rows[i] * out.shape[1]", "rows[i] * out.shape[0]", PHILOX),
    Mutant("rows by their place", "engine/philox.py", "rows[i] * out.shape[1]", "(rows[0] + i) * out.shape[1]", PHILOX),
    Mutant("each tile perturbed by the first's noise", "engine/philox.py", "_fill(kind, z[:n], start + first, key)", "_fill(kind, z[:n], start + lo, key)", PHILOX),
    Mutant("parts perturbed by the first's noise", "engine/philox.py", "_fill(kind, z[:n], start + first, key)", "_fill(kind, z[:n], start + first - lo, key)", PHILOX),
    Mutant("scale of only the first sign", "engine/philox.py", "scale, out, theta = scales[s],", "scale, out, theta = scales[0],", PHILOX),
    Mutant("perturbed the other way", "engine/philox.py", "out[i] = theta[i] + scale * z[i]", "out[i] = theta[i] - scale * z[i]", PHILOX),
    Mutant("eps in fp32", "engine/philox.py", "scales = np.array(scales, dtype=flat.dtype)", "scales = np.array(scales, dtype=np.float32)", ORACLE),
    Mutant("the last of a sum's terms alone", "engine/philox.py", "total[i] += weight * z[i]", "total[i] = weight * z[i]", PHILOX),
    Mutant("one key for all of a sum's terms", "engine/philox.py", "_fill(kind, z, start, keys[k])", "_fill(kind, z, start, keys[0])", PHILOX),
    Mutant("a sum's weights in another order", "engine/philox.py", "weight = weights[k]", "weight = weights[len(keys) - 1 - k]", PHILOX),
    Mutant("a sum's terms in another order", "engine/philox.py", "for k in range(len(keys)):", "for k in range(len(keys) - 1, -1, -1):", PHILOX),
    Mutant("a sum begins with what its buffer held", "engine/philox.py", "    total[:] = 0\n", "", PHILOX),
    Mutant("tiles of a sum alike", "engine/philox.py", "total[first : min(first + _TILE, hi)], start + first,", "total[first : min(first + _TILE, hi)], start + lo,", PHILOX),
    Mutant("parts of a sum alike", "engine/philox.py", "total[first : min(first + _TILE, hi)], start + first,", "total[first : min(first + _TILE, hi)], start + first - lo,", PHILOX),
    Mutant("tiles of an update alike", "engine/philox.py", "_sum_tile(kind, total[:n], start + first,", "_sum_tile(kind, total[:n], start + lo,", PHILOX),
    Mutant("parts of an update alike", "engine/philox.py", "_sum_tile(kind, total[:n], start + first,", "_sum_tile(kind, total[:n], start + first - lo,", PHILOX),
    Mutant("an update without its alpha", "engine/philox.py", "part[i] += alpha * total[i]", "part[i] += total[i]", PHILOX),
    # The noise.
    Mutant("one key for all tensors", "engine/noise.py", "mix(self._key, query, parameter)", "mix(self._key, query)", NOISE, places=4),
    Mutant("one key for all queries", "engine/noise.py", "mix(self._key, query, parameter)", "mix(self._key, parameter)", NOISE, places=4),
    Mutant("one key for all steps", "engine/noise.py", "mix(seed, step, stream)", "mix(seed, stream)", NOISE, places=2),
    Mutant("32 bits of a key's parts", "engine/noise.py", "(word & _MASK)) & _MASK", "(word & 0xFFFFFFFF)) & _MASK", NOISE),
    Mutant("control is the estimate's own noise", "engine/noise.py", "stream=CONTROL)\n\n\n@dataclass", "stream=DIRECTIONS)\n\n\n@dataclass", NOISE),
    Mutant("control of low-rank directions drawn from their stream", "engine/noise.py", "stream=CONTROL)\n\n\ndef make_noise", "stream=DIRECTIONS)\n\n\ndef make_noise", (*LOWRANK, "-k", "control")),
    Mutant("a block's first row ignored", "engine/noise.py", "philox.fill_(self._kind, out, start * (out.numel() // len(out)), key)", "philox.fill_(self._kind, out, 0, key)", NOISE),
    Mutant("a block's first row taken for its first element", "engine/noise.py", "philox.fill_(self._kind, out, start * (out.numel() // len(out)), key)", "philox.fill_(self._kind, out, start, key)", NOISE),
    Mutant("perturbed blocks from the first row's noise", "engine/noise.py", "first = start * (theta.numel() // len(theta))", "first = 0", BLOCKS),
    Mutant("summed blocks from the first row's noise", "engine/noise.py", "first = start * (total.numel() // len(total))", "first = 0", NOISE),
    Mutant("looked-up rows of the first block's noise", "engine/directions.py", "query, parameter, rows.start)\n            here", "query, parameter, 0)\n            here", NOISE),
    Mutant("a block's first row not looked up", "engine/directions.py", "(ids >= rows.start)", "(ids > rows.start)", NOISE),
    Mutant("noise overwritten by the first sign", "engine/directions.py", "noise = self.fill_(outs[-1],", "noise = self.fill_(outs[0],", NOISE),
    Mutant("only the last query kept", "engine/directions.py", "total.add_(self.fill_(noise, query, parameter, start), alpha=weight)", "total.copy_(self.fill_(noise, query, parameter, start)).mul_(weight)", (*GUIDANCE, "-k", "guided_estimate")),
    Mutant("other noise in the update", "engine/noise.py", "[mix(self._key, query, parameter) for", "[mix(self._key, query + 1, parameter) for", ORACLE),
    Mutant("a block of the sum made in the update", "engine/noise.py", "return philox.add_sum_(self._kind, theta, alpha, weights, 0, self._keys(weights, parameter))", "return super()._update_one_(theta, alpha, weights, parameter)", (*ESTIMATE, "-k", "update_nothing")),
    Mutant("half-precision update term by term", "engine/directions.py", "                store_(part, total.mul_(alpha).add_(part), parameter, rows.start)\n", TERM_BY_TERM, HALF),
    Mutant("half-precision sum rounded before it is added", "engine/directions.py", "store_(part, total.mul_(alpha).add_(part), parameter, rows.start)", "part.add_(total.mul_(alpha).to(part.dtype))", HALF),
    Mutant("off the CPU one key for all blocks", "engine/noise.py", "mix(key, start + rows.start)", "key", ELSEWHERE),
    Mutant("off the CPU a block's first row ignored", "engine/noise.py", "mix(key, start + rows.start)", "mix(key, rows.start)", ELSEWHERE),
    Mutant("off the CPU signs of one half", "engine/noise.py", ".mul_(2).sub_(1)", ".sub_(0.5)", ELSEWHERE),
    Mutant("off the CPU the global RNG reseeded", "engine/noise.py", "_private_generator(out.device).manual_seed(key)", "torch.manual_seed(key)", ELSEWHERE),
    # The perturbed forward pass.
    Mutant("all members get the first query's noise", "engine/members.py", "self._directions.perturb_(outs, theta, self._scales, query, index, rows.start)", "self._directions.perturb_(outs, theta, self._scales, self._queries[0], index, rows.start)", ORACLE),
    Mutant("vectors of all members get the first query's noise", "engine/members.py", "self._directions.perturb_(out, theta, self._scales, query, index)", "self._directions.perturb_(out, theta, self._scales, self._queries[0], index)", PERTURBED),
    Mutant("rows of all members get the first query's noise", "engine/members.py", "noise.shape[-1]), query, index, own, table)", "noise.shape[-1]), self._queries[0], index, own, table)", PERTURBED),
    Mutant("member order swapped", "engine/members.py", "yield rows, k * signs + s,", "yield rows, k * signs + signs - 1 - s,", ORACLE),
    Mutant("signs of matrices outermost", "engine/members.py", "yield rows, k * signs + s,", "yield rows, s * len(self._queries) + k,", ORACLE),
    Mutant("signs of vectors outermost", "engine/members.py", "return outs.flatten(0, 1).to(", "return outs.transpose(0, 1).flatten(0, 1).to(", ORACLE),
    Mutant("the second sign of a looked-up row dropped", "engine/members.py", "member.add_(z, alpha=scale)", "member.add_(z, alpha=self._scales[0])", PERTURBED),
    Mutant("block rows written to the first columns", "engine/members.py", "out=out[member][:, rows])", "out=out[member][:, : len(block)])", BLOCKS),
    Mutant("the last block alone of a sum over blocks", "engine/members.py", "beta=int(rows.start > 0)", "beta=0", BLOCKS),
    Mutant("every block multiplied by the first columns", "engine/members.py", "x[member][:, rows],", "x[member][:, : len(block)],", BLOCKS),
    Mutant("a sum over blocks in half precision", "engine/members.py", "row_blocks(weight) if exact else [slice(0, len(weight))]", "row_blocks(weight)", BLOCKS),
    Mutant("the first block's noise in every block of a whole parameter", "engine/members.py", "self._queries[0], index, rows.start\n", "self._queries[0], index, 0\n", BLOCKS),
    Mutant("a frozen weight transposed", "engine/members.py", "matrix = (weight.t() if out_first else weight).to(x.dtype)\n            torch.mm", "matrix = (weight if out_first else weight.t()).to(x.dtype)\n            torch.mm", PERTURBED),
    Mutant("a dropped bias", "engine/members.py", "        if bias is not None:\n            out +=", "        if False:\n            out +=", PERTURBED),
    Mutant("bias not perturbed", "engine/members.py", "(bias if bias_index is None else self.vector(bias, bias_index)[:, None])", "bias", PERTURBED),
    Mutant("tied head perturbed twice", "engine/members.py", "self._directions.perturb_(outs, theta, self._scales, query, index, rows.start)", "self._directions.perturb_(outs, theta, [s * (1 + (len(weight) == 50)) for s in self._scales], query, index, rows.start)", ORACLE),
    Mutant("tied head not perturbed", "engine/perturbed.py", "                return handler(self, *args, **kwargs)\n", FIRST_USE_ONLY, ORACLE),
    Mutant("positions interleaved wrongly", "engine/perturbed.py", "out.repeat_interleave(batch, dim=0) if shared", "out.repeat(batch, 1, 1) if shared", ORACLE),
    Mutant("unknown operations of many members read the plain weights", "engine/perturbed.py", "            raise UnsupportedOperation(function)\n", "            return function(*args, **kwargs)\n", UNUSUAL),
    Mutant("unknown operations of one member read the plain weights", "engine/perturbed.py", "return self._substitute(function, args, kwargs)", "return function(*args, **kwargs)", UNUSUAL),
    Mutant("parameters in lists read plain", "engine/perturbed.py", "elif isinstance(value, (list, tuple)):", "elif False:", PERTURBED),
    Mutant("a view counts as metadata", "engine/perturbed.py", "    torch.Tensor.size,\n", "    torch.Tensor.size,\n    torch.Tensor.t,\n", UNUSUAL),
    Mutant("rows of no member in particular split all the same", "engine/perturbed.py", "len(activations) % (members * self.batch_size)", "len(activations) % members", PERTURBED),
    Mutant("an input that is a parameter itself reads plain", "engine/perturbed.py", "if self.index(activations) is not None:", "if False:", PERTURBED),
    Mutant("addmm's factors ignored", "engine/perturbed.py", "if beta != 1 or alpha != 1 or more:", "if more:", PERTURBED),
    Mutant("norm's bias not perturbed", "engine/perturbed.py", "weight, bias = mode.vector(weight), mode.vector(bias)", "weight = mode.vector(weight)", PERTURBED),
    Mutant("a buffer of another type", "engine/scratch.py", " or flat.dtype != like.dtype or", " or", PERTURBED),
    # The estimate.
    Mutant("no 1/(2 eps)", "engine/estimate.py", "(losses[:, 0] - losses[:, 1]) / (2 * epsilon)", "losses[:, 0] - losses[:, 1]", ORACLE),
    Mutant("1/eps for two sides", "engine/estimate.py", "/ (2 * epsilon)", "/ epsilon", ORACLE),
    Mutant("1/(2 eps) for one side", "engine/estimate.py", "(losses[:q] - losses[q:]) / epsilon", "(losses[:q] - losses[q:]) / (2 * epsilon)", ORACLE),
    Mutant("inverted sign", "engine/estimate.py", "(losses[:, 0] - losses[:, 1])", "(losses[:, 1] - losses[:, 0])", ORACLE),
    Mutant("inverted sign of the compact update", "engine/estimate.py", "update_(parameters, alpha, self.weights(), store_)", "update_(parameters, -alpha, self.weights(), store_)", (*ESTIMATE, "-k", "compact")),
    Mutant("wrong base of one side", "engine/estimate.py", "parts += [objective.losses()] if q in own else []", "parts += [parts[0][:1].clone()] if q in own else []", ORACLE),
    Mutant("a wait for the base alone", "engine/estimate.py", "return _read(torch.cat(parts)).view(-1, 1)", "return torch.cat([_read(part) for part in parts]).view(-1, 1)", ("tests/unit/engine/test_launches.py", "-k", "waits")),
    Mutant("no mean over q", "engine/estimate.py", "(self.scale / len(self.coefficients))", "self.scale", ORACLE),
    Mutant("loss of the first member alone", "engine/estimate.py", "losses.mean().item()", "losses[0].item()", ORACLE),
    Mutant("losses of half-precision logits", "engine/objective.py", "logits = logits.to(at_least_fp32(logits))", "pass", ("tests/unit/engine/test_half.py",)),
    Mutant("a dense gradient in half precision", "engine/estimate.py", "self.weights(), index).view(parameter.shape)", "self.weights(), index).view(parameter.shape).to(parameter.dtype)", HALF),
    Mutant("perturbed in place", "engine/estimate.py", "        with Perturbed(parameters, members, rows.shape[1]) as perturbed:\n", IN_PLACE, (*ESTIMATE, "-k", "bit_for_bit")),
    Mutant("signs outermost in the sequential plan", "engine/estimate.py", "for query in queries for scale in scales]", "for scale in scales for query in queries]", ORACLE),
    Mutant("no fall-back to the sequential plan", "engine/estimate.py", "except UnsupportedOperation as unsupported:\n", "except UnsupportedOperation as unsupported:\n            raise\n", UNUSUAL),
    Mutant("a loss for each token taken for losses of members", "engine/objective.py", "if losses.numel() != len(targets):", "if False:", (*ESTIMATE, "-k", "each_token")),
    Mutant("a gradient beside backprop's own", "engine/objective.py", "        if not gradients:\n            gradients = [pieces.pop(0)", "        if not gradients:\n            gradients = [pieces.pop(0) + torch.zeros_like(p)", (*ESTIMATE, "-k", "memory_of_torchs")),
    Mutant("a NaN hides that sequences mix", "engine/sharing.py", "finite = alone.isfinite()", "finite = alone.isfinite() & alone.isfinite().all()", (*ARCHITECTURES, "-k", "hides_nothing")),
    Mutant("sequences that mix are not noticed", "engine/sharing.py", "return bool((together", "return True or bool((together", (*ARCHITECTURES, "-k", "keep_its_sequences")),
    Mutant("the trial's noise is too small to see", "engine/sharing.py", "SCALE = 1e-2", "SCALE = 1e-7", (*ARCHITECTURES, "-k", "keep_its_sequences")),
    Mutant("a model is tried every step", "engine/sharing.py", "        _seen_to[model] = ids\n", "        pass\n", (*ARCHITECTURES, "-k", "tried_once")),
    # The probe.
    Mutant("a probe along the directions of training", "engine/probe.py", "settings.rank, PROBE)", "settings.rank)", (PROBE, "-k", "trained_along")),
    Mutant("an estimate that is not a mean", "engine/probe.py", "torch._foreach_add_(total, direction, alpha=slope / q)", "torch._foreach_add_(total, direction, alpha=slope)", (PROBE, "-k", "cosine_and_length")),
    Mutant("a line search uphill", "engine/probe.py", "-factor * predicted", "factor * predicted", (PROBE, "-k", "line_search")),
    Mutant("a parabola of other points", "engine/probe.py", "near = slice(place - 1, place + 2)", "near = slice(0, 3)", (PROBE, "-k", "line_search")),
    Mutant("batch noise with bias", "engine/probe.py", "signal = square - noise / n", "signal = square", (PROBE, "-k", "without_bias")),
    Mutant("the low-rank law is the Gaussian's", "engine/laws.py", "one += share * (own + d - size)", "one += share * (d + 2)", (PROBE, "-k", "other_families")),
    Mutant("curvature of one side", "engine/landscape.py", "return (self.change(direction, scale) + self.change(direction, -scale)) / scale**2", "return 2 * self.change(direction, scale) / scale**2", (PROBE, "-k", "quadratics_own")),
    Mutant("end weights that are the start's", "training/probe_run.py", "weights = _final_weights(run, files) if", "weights = dict(run.named) if", (PROBE, "-k", "start_and_end")),
    Mutant("a batch is read outside the clock", "training/run.py", "        with self.ledger.timed():\n            batch = self.batch(self.data, step)", "        batch = self.batch(self.data, step)\n        with self.ledger.timed():\n            pass", (METHODS, "-k", "clock_runs")),
    Mutant("the clock stops before the GPU", "training/run.py", "if self._looks_up_after(step):", "if False:", ("tests/contract/test_methods.py", "-k", "clock_waits")),
    Mutant("a mean of signed cosines", "analysis/probes.py", "rms_interval(values)", "mean_interval(values)", ("tests/unit/analysis/test_probes.py", "-k", "averages")),
    Mutant("a law outside the interval unsaid", "analysis/probes.py", '(ratio["low"] > 1) | (ratio["high"] < 1)', 'ratio["low"] > ratio["high"]', ("tests/unit/analysis/test_probes.py", "-k", "conclusion")),
    Mutant("a bad eps is not said", "analysis/probes.py", "not errors.loc[own].max() > BAD_SLOPE", "True", ("tests/unit/analysis/test_probes.py", "-k", "bad_eps")),
    Mutant("the parallel plan tried again every step", "engine/estimate.py", "        _unsupported.add(objective.model)\n", "", (*ARCHITECTURES, "-k", "one_warning")),
    Mutant("labels not shifted by the entry", "engine/estimate.py", "labels[:, 1:].to(device)", "labels.to(device)", (*ESTIMATE, "-k", "shifts_the_labels")),
    Mutant("no seed is always seed 0", "engine/estimate.py", "seed = torch.randint(2**62, ()).item()", "seed = 0", (*ESTIMATE, "-k", "without_a_seed")),
    Mutant("accumulated gradient not averaged", "engine/objective.py", "value * (scale / accumulation)", "value * scale", (*ESTIMATE, "-k", "backprop")),
    Mutant("noise of another norm in Random", "engine/estimate.py", "self.norm(parameters) / noise.norm(parameters)", "1.0", (METHODS, "-k", "random_takes")),
    # Low-rank directions.
    Mutant("low-rank that is made dense in the parallel plan", "engine/members.py", "LowRankMembers if isinstance(directions, LowRankNoise) else DenseMembers", "DenseMembers", (*LOWRANK, "-k", "never_make")),
    Mutant("low-rank that is made dense in the update", "engine/noise.py", "if self.compact(parameter, index, len(weights)):", "if False:", (*LOWRANK, "-k", "never_make")),
    Mutant("a full-rank Gaussian under low-rank's name", "engine/noise.py", "return torch.mm((u[:, start:stop] * self.root).T, v, out=out)", 'return Noise("gaussian", *self._seed_step).fill_(out, query, parameter, start)', (*LOWRANK, "-k", "exactly_its_rank")),
    Mutant("u and v swapped", "engine/members.py", FACTORS, FACTORS.replace("out_first]", "out_first ^ (out_first and weight.shape[0] == weight.shape[1])]"), MEMBERS),
    Mutant("u and v swapped in addmm", "engine/members.py", FACTORS, FACTORS.replace("out_first]", "out_first ^ (not out_first and weight.shape[0] == weight.shape[1])]"), MEMBERS),
    Mutant("u and v from swapped places", "engine/noise.py", "factors[..., start : start + m], factors[..., start + m : start + m + n]", "factors[..., start + n : start + m + n], factors[..., start : start + n]", (*LOWRANK, "-k", "when_this_was_written")),
    Mutant("no 1/sqrt(r)", "engine/noise.py", "return self.rank**-0.5", "return 1.0", (*LOWRANK, "-k", "second_moment")),
    Mutant("1/r for 1/sqrt(r)", "engine/noise.py", "return self.rank**-0.5", "return 1 / self.rank", ("tests/unit/engine/test_laws.py", "-k", "one_matrix")),
    Mutant("no 1/sqrt(r) in a direction made dense", "engine/noise.py", "(u[:, start:stop] * self.root).T", "u[:, start:stop].T", LOWRANK),
    Mutant("no 1/sqrt(r) in the members", "engine/members.py", "self._times_scales(self._factors, directions.root)", "self._times_scales(self._factors, 1.0)", MEMBERS),
    Mutant("1/sqrt(r) in the members' vectors", "engine/members.py", "self._times_scales(drawn.vectors.to(wide), 1.0)", "self._times_scales(drawn.vectors.to(wide), directions.root)", MEMBERS),
    Mutant("no 1/sqrt(r) in the update", "engine/noise.py", "weighted = (on_device * self.root)", "weighted = on_device", (*LOWRANK, "-k", "dense_sum")),
    Mutant("no 1/sqrt(r) in the sum", "engine/noise.py", "u[..., start:stop] * (on_device * self.root)[:, None, None]", "u[..., start:stop] * on_device[:, None, None]", (*LOWRANK, "-k", "dense_sum")),
    Mutant("no 1/sqrt(r) in the norm", "engine/noise.py", ".to(theta.dtype) * self.root", ".to(theta.dtype)", (*LOWRANK, "-k", "dense_sum")),
    Mutant("one row of factors for all queries", "engine/noise.py", "mix(self._key, query, 0)", "mix(self._key, 0, 0)", LOWRANK),
    Mutant("one row of vectors for all queries", "engine/noise.py", "mix(self._key, query, 1)", "mix(self._key, 0, 1)", LOWRANK),
    Mutant("one key for factors and vectors", "engine/noise.py", "mix(self._key, query, 1)", "mix(self._key, query, 0)", (*LOWRANK, "-k", "unrelated")),
    Mutant("directions kept are taken for any queries", "engine/noise.py", "if self._kept[0] != queries or", "if not self._kept[0] or", LOWRANK),
    Mutant("the first direction kept for any of them", "engine/noise.py", "place = slice(queries.index(query), queries.index(query) + 1)", "place = slice(0, 1)", LOWRANK),
    Mutant("weights of the update not applied to factors", "engine/noise.py", "(on_device * self.root).to(wide)[:, None, None] * factors", "factors * (self.root / len(weights))", (*LOWRANK, "-k", "dense_sum")),
    Mutant("weights of the sum not applied to factors", "engine/noise.py", "u[..., start:stop] * (on_device * self.root)[:, None, None]", "u[..., start:stop] * (self.root / len(weights))", (*LOWRANK, "-k", "dense_sum")),
    Mutant("weights of the update not applied to vectors", "engine/noise.py", "total = weights.to(wide) @ drawn.to(wide)", "total = drawn.to(wide).mean(0)", (*LOWRANK, "-k", "dense_sum")),
    Mutant("weights of the update in fp32", "engine/noise.py", "torch.tensor(weights, dtype=torch.float64,", "torch.tensor(weights, dtype=torch.float32,", (*LOWRANK, "-k", "dense_sum")),
    Mutant("alpha dropped for vectors", "engine/noise.py", "torch._foreach_add_(parameters, parts, alpha=alpha)", "torch._foreach_add_(parameters, parts)", (*LOWRANK, "-k", "dense_sum")),
    Mutant("sums of low-rank noise in half precision", "engine/directions.py", "theta.new_empty(theta[rows].shape, dtype=at_least_fp32(theta))", "theta.new_empty(theta[rows].shape)", (*LOWRANK, "-k", "dense_sum or bf16")),
    Mutant("one product in half precision too", "engine/noise.py", "return self.matrices[index] and exact and 2", "return self.matrices[index] and 2", (*LOWRANK, "-k", "dense_sum or bf16")),
    Mutant("the first rows' factors in every block of a direction", "engine/noise.py", "u[:, start:stop] * self.root", "u[:, : len(out)] * self.root", (*LOWRANK, "-k", "blocks")),
    Mutant("the first rows' factors in every block of a sum", "engine/noise.py", "u = u[..., start:stop] *", "u = u[..., : len(total)] *", (*LOWRANK, "-k", "blocks")),
    Mutant("the first elements in every block of a vector", "engine/noise.py", "return out.copy_(z[start:stop])", "return out.copy_(z[: len(out)])", (*LOWRANK, "-k", "blocks")),
    Mutant("the first elements in every block of a vector's sum", "engine/noise.py", "            total.copy_(z[start:stop])", "            total.copy_(z[: len(total)])", (*LOWRANK, "-k", "blocks")),
    Mutant("the update's norm without its cross terms", "engine/noise.py", "torch.sum((a @ a.T).double() * (b @ b.T).double())", "torch.sum((a * a).sum(1).double() * (b * b).sum(1).double())", (*LOWRANK, "-k", "dense_sum")),
    Mutant("sign of the second member dropped", "engine/members.py", "drawn * (scale * factor)", "drawn * (abs(scale) * factor)", MEMBERS),
    Mutant("signs outermost", "engine/members.py", "for scale in self._scales], dim=1)", "for scale in self._scales], dim=0)", MEMBERS),
    Mutant("bias perturbation dropped", "engine/members.py", "            bias = self.vector(bias, bias_index)[:, None]\n", "            pass\n", MEMBERS),
    Mutant("a frozen weight's own part left out with its bias", "engine/members.py", "x.new_zeros(()) if bias is None else bias.to(own.dtype)", "x.new_zeros(())", (*ARCHITECTURES, "-k", "part_of_the_parameters")),
    Mutant("output buffer reused within one pass", "engine/members.py", "first = id(weight) not in self._seen ", "first = True ", (*ARCHITECTURES, "-k", "kept_from_pass")),
    Mutant("embedding's own part from the first direction", "engine/members.py", "[each, ids.reshape(len(u), -1)]", "[0 * each, ids.reshape(len(u), -1)]", MEMBERS),
    Mutant("shard rows mixed up", "engine/estimate.py", "return rows.view(q, -1)", "return rows.view(-1, q).t()", SHARDS),
    Mutant("shard rows repeated for signs the other way", "engine/estimate.py", ".repeat_interleave(len(scales), dim=0)", ".repeat(len(scales), 1)", SHARDS),
    Mutant("the first shards for every chunk", "engine/estimate.py", "rows[queries[0] : queries[-1] + 1]", "rows[: len(queries)]", SHARDS),
    Mutant("a shard's targets are the batch's first", "engine/objective.py", "else self.targets[rows]", "else self.targets[: rows.shape[1]].expand(len(rows), -1, -1)", SHARDS),
    Mutant("one base for all shards", "engine/estimate.py", "base = objective.losses(rows[own.start : own.stop])", "base = objective.losses(None).expand(len(own))", SHARDS),
    Mutant("a shard counted as a whole batch", "engine/estimate.py", "losses.numel() // q if sharded else losses.numel()", "losses.numel()", LEDGER),
    Mutant("a shard's cost not foreseen", "methods.py", "        if spec.shard_batch:  # each direction reads its own 1/q of the batch\n            return 2\n", "", LEDGER),
    Mutant("rank not passed on", "step.py", "state.parameters, spec.rank)", "state.parameters)", (*PATH[:2], "textbooks_path and rank")),
    # The plan.
    Mutant("free memory ignored", "engine/plan.py", "if free_bytes is not None:", "if False:", PLAN),
    Mutant("all of the free memory for logits", "engine/plan.py", "int(FREE_SHARE * free_bytes)", "free_bytes", PLAN),
    Mutant("logits of one sign", "engine/plan.py", "logits = signs * tokens * vocab_size * 4", "logits = tokens * vocab_size * 4", PLAN),
    Mutant("a pair of any size in one pass", "engine/plan.py", "logits <= PAIR_LOGITS_BYTES[device]", "True", PLAN),
    Mutant("a GPU kept to a CPU's tokens", "engine/plan.py", 'if device == "cpu":', "if True:", PLAN),
    # Directions around a gradient.
    Mutant("no 1/c^2", "engine/guidance.py", "self.scale = 1 / cosine_target**2", "self.scale = 1.0", GUIDANCE),
    Mutant("noise not orthogonal to the gradient", "engine/guidance.py", "(c - b * along) / self._norm", "c / self._norm", GUIDANCE),
    Mutant("directions scaled by sqrt(d)", "engine/guidance.py", "return (c - b * along) / self._norm, b", "d = sum(g.numel() for g in self._gradient) ** 0.5\n        return d * (c - b * along) / self._norm, d * b", GUIDANCE),
    Mutant("the first rows of the gradient in every block", "engine/guidance.py", "[start : start + len(out)]", "[: len(out)]", GUIDANCE),
    Mutant("the first rows' noise in every block around a gradient", "engine/guidance.py", "self._noise.fill_(out, query, parameter, start)", "self._noise.fill_(out, query, parameter)", GUIDANCE),
    Mutant("the first rows' noise weighed for every block", "engine/guidance.py", "query, index, rows.start)", "query, index)", GUIDANCE),
    # The methods.
    Mutant("backprop one step late", "methods.py", "if state.step % state.spec.bp_interval:\n            return super().step(state, batch, guide)\n        loss,", "if (state.step - 1) % state.spec.bp_interval:\n            return super().step(state, batch, guide)\n        loss,", (METHODS, "-k", "on_the_interval")),
    Mutant("Random descends along the estimate", "methods.py", "return estimate.replaced_by_noise(state.parameters)", "return estimate", (METHODS, "-k", "random_takes")),
    Mutant("blend is a sum", "methods.py", "(ours + exact) / 2", "ours + exact", (*PATH[:2], "textbooks_path and blend")),
    Mutant("the same directions every step", "step.py", "spec.seed, state.step, state.parameters", "spec.seed, 0, state.parameters", PATH),
    Mutant("learning rate not passed on", "step.py", "set_learning_rate(state.optimizers, state.learning_rate)", "pass", (*PATH[:2], "textbooks_path and bp_learning_rate")),
    Mutant("the guide's data ignored", "methods.py", "_, gradient, passes = backpropagate_batch(state, guide)", "_, gradient, passes = backpropagate_batch(state, batch)", (METHODS, "-k", "other_corpus")),
    Mutant("the guide's data ignored by Calibrate", "methods.py", "loss, gradient, passes = backpropagate_batch(state, guide)", "loss, gradient, passes = backpropagate_batch(state, batch)", (METHODS, "-k", "other_corpus")),
    Mutant("backprop's forward pass not counted", "step.py", "forward_passes=estimate.forward_passes + backward", "forward_passes=estimate.forward_passes", LEDGER),
    Mutant("base loss not foreseen", "methods.py", 'if spec.sides == "two" else spec.query_budget_q + 1', 'if spec.sides == "two" else spec.query_budget_q', LEDGER),
    Mutant("ledger off by one", "engine/estimate.py", "losses.mean().item(), cost, ", "losses.mean().item(), cost - 1, ", LEDGER),
    Mutant("tokens evaluated once a step", "training/ledger.py", "+= report.forward_passes * batch_tokens", "+= batch_tokens", LEDGER),
    # The layer-wise modes.
    Mutant("what was trained goes on", "training/run.py", "named = select_scope(model, phase.scope)", "named = select_scope(model, spec.scope)", (LAYERS, "-k", "never_again")),
    Mutant("a block keeps its first weights", "training/run.py", "if phase.fresh:", "if False:", (LAYERS, "-k", "new_weights_of")),
    Mutant("new weights of no seed", "training/run.py", "mix(spec.seed, block))", "mix(0, block))", (LAYERS, "-k", "new_weights_of")),
    Mutant("new weights seed the global generator", "models.py", "_find_blocks(_initialise(type(model), config, seed))", "_find_blocks(torch.manual_seed(seed) and type(model)(config))", (METHODS, "-k", "global_generator and Layerwise")),
    Mutant("optimizers live on in the next phase", "training/run.py", "state.optimizers = build_optimizers(", "state.optimizers = state.optimizers or build_optimizers(", (LAYERS, "-k", "new_optimizers")),
    Mutant("one schedule for all phases", "training/run.py", "step, total = step - phase.first + 1, phase.last - phase.first + 1", "total = phase.last", (LAYERS, "-k", "warm_up")),
    Mutant("the embedding at the blocks' rate", "methods.py", "        if not state.phase.fresh:\n            take_backprop_rate(state)\n", "", (LAYERS, "-k", "warm_up")),
    Mutant("a phase ends one step late", "methods.py", "number = bisect_left(ends, step)", "number = bisect_left(ends, step - 1)", (LAYERS, "-k", "none_is_empty")),
    Mutant("the embedding's parts ignored", "methods.py", "return spec.embedding_parts + spec.layers", "return 2 + spec.layers", (LAYERS, "-k", "none_is_empty or cannot_be_cut")),
    Mutant("a phase without steps", "methods.py", "return Layerwise.cycle(spec)\n\n    @classmethod", "return 1\n\n    @classmethod", (LAYERS, "-k", "suffice or cannot_be_cut")),
    Mutant("the blocks' passes foreseen for all phases", "methods.py", "return cls.blocks if phase.fresh else FO", "return cls.blocks", (LAYERS, "-k", "forecast")),
    Mutant("the last step of a budget not foreseen", "lengths.py", "bisect_right(range(1, cycle), left, key=cost)", "0", ("tests/unit/test_spec.py", "-k", "last_step_that_fits")),
    Mutant("resumed in the first phase", "training/run.py", "        self.enter(max(1, checkpoint.step))  # whose optimizers' state it holds\n", "", (LAYERS, "-k", "killed_in_every")),
    Mutant("resumed in the next step's phase", "training/run.py", "self.enter(max(1, checkpoint.step))", "self.enter(checkpoint.step + 1)", (LAYERS, "-k", "killed_in_every")),
    Mutant("all of the model's gradient planned for", "planning/footprint.py", "scopes = {method.phase(spec, step, cycle).scope for step in range(1, cycle + 1)}", "scopes = {spec.scope}", (LAYERS, "-k", "forecast")),
    Mutant("ranks sum the first phase's gradients", "training/run.py", "state.replica = Replica(model, state.ranks)", "state.replica = state.replica or Replica(model, state.ranks)", (RANKS, "-k", "agree_to_rounding")),
    # The run.
    Mutant("labels not shifted in the trainer", "training/run.py", "blocks[:, 1:], PRECISIONS", "blocks[:, :-1], PRECISIONS", PATH),
    Mutant("dropout on", "models.py", "resid_pdrop=0.0", "resid_pdrop=0.1", (METHODS, "-k", "no_dropout")),
    Mutant("weights in half precision", "training/run.py", "PRECISIONS[spec.weights.removesuffix(\"-nearest\")]", "PRECISIONS[spec.precision]", (METHODS, "-k", "weights_stay")),
    Mutant("norms' weights in bf16", "training/run.py", "matrices_alone=True", "matrices_alone=False", (METHODS, "-k", "in_bf16")),
    Mutant("checkpoints of bf16 weights planned as fp32", "planning/footprint.py", 'return FLOAT if spec.weights == "fp32" else 2', "return FLOAT", ("tests/unit/planning/test_footprint.py", "-k", "half")),
    Mutant("stochastic rounding always down", "engine/rounding.py", ".add_(bits.to(torch.int32))", "", ROUNDING),
    Mutant("one rounding for all steps", "engine/rounding.py", "seed, step, ROUNDING)", "seed, 0, ROUNDING)", ROUNDING),
    Mutant("one rounding for all blocks", "engine/rounding.py", "torch.empty_like(exact), 0, parameter, start)", "torch.empty_like(exact), 0, parameter)", ROUNDING),
    Mutant("rounding asked for, not taken", "step.py", "-state.learning_rate, store_)\n        return lambda: direction.norm", "-state.learning_rate)\n        return lambda: direction.norm", (METHODS, "-k", "in_bf16")),
    Mutant("dense updates rounded by the optimizer", "step.py", 'if state.spec.weights != "fp32":', "if False:", (METHODS, "-k", "in_bf16")),
    Mutant("validation by the run's block size", "training/run.py", "validation_blocks(spec.validation_block_size", "validation_blocks(spec.block_size", (METHODS, "-k", "validation_reads")),
    Mutant("optimizer state not resumed", "training/run.py", 'unpack_state(self.state.optimizers, tensors, checkpoint.state["optimizers"])', "pass", RESUME),
    Mutant("ledger not resumed", "training/run.py", 'self.ledger = Ledger(**checkpoint.state["ledger"])', "self.ledger.step = checkpoint.step", RESUME),
    Mutant("logs not cut back", "training/record.py", "file.truncate(length)\n    file.seek(length)", "file.seek(0, 2)", RESUME),
    Mutant("changed settings ignored", "training/train.py", "if resolved != then.model_copy(update=plan):", "if False:", (METHODS, "-k", "starts_over")),
    Mutant("no checkpoint at a signal", "training/loop.py", "if last or told or ledger.step", "if last or ledger.step", (METHODS, "-k", "a_signal")),
    Mutant("NaN trained on", "training/loop.py", "if not math.isfinite(report.loss):", "if False:", (METHODS, "-k", "no_number")),
    Mutant("high losses need not be in a row", "training/loop.py", "if report.loss > limit else 0", "if report.loss > limit else run.ledger.high_steps", (METHODS, "-k", "above_chance")),
    # The launcher.
    Mutant("a slot's lock not asked", "sweep/gpus.py", "if not try_hold(files[-1], shared):", "if False:", GPUS),
    Mutant("a GPU alone shared all the same", "sweep/gpus.py", "[(own, slots > 1),", "[(own, True),", GPUS),
    Mutant("a locked slot forgotten", "sweep/gpus.py", "        _held.extend(file for files in taken.values() for file in files)\n", "        _close(file for files in taken.values() for file in files)\n", GPUS),
    # The checkpoint.
    Mutant("checksum not verified", "training/checkpoint.py", 'if _checksum(metadata["zo"], tensors) != metadata["sha256"]:', "if False:", CHECKPOINT),
    Mutant("only the newest checkpoint kept", "training/checkpoint.py", "KEPT = 2", "KEPT = 1", CHECKPOINT),
    Mutant("the oldest checkpoint loaded", "training/checkpoint.py", ", reverse=True)", ")", CHECKPOINT),
    # The sweep as others see it.
    Mutant("events written over one another", "training/job.py", " | os.O_APPEND", "", (JOB, "-k", "many_processes")),
    Mutant("a lock is not looked at", "sweep/status.py", "if is_held(", "if False and (", (STATUS, "-k", "while_its_process")),
    Mutant("a slow run elsewhere is lost", "sweep/status.py", "max(SILENT_S, 5 * _usual_gap(rows))", "SILENT_S", (STATUS, "-k", "between_two_rows")),
    Mutant("half a row read", "training/record.py", '.split("\\n")[1:-1]', '.split("\\n")[1:]', (STATUS, "-k", "half_a_row")),
    Mutant("a reused process number", "sweep/sweep_record.py", "return same and", "return", (STATUS, "-k", "at_work")),
    Mutant("a crashed run pruned", "training/record.py", '("done", "diverged")', '("done", "diverged", "crashed")', PRUNE),
    Mutant("a run that trains pruned", "sweep/prune.py", "yield False\n                return", "pass", PRUNE),
    Mutant("times packed", "sweep/archive.py", "info.mtime, info.mode = os.fstat(content.fileno()).st_size, EPOCH, 0o644", "info.mtime, info.mode = os.fstat(content.fileno()).st_size, os.fstat(content.fileno()).st_mtime, 0o644", (ARCHIVE, "-k", "same_bytes")),
    Mutant("links packed", "sweep/archive.py", "if path.is_file() and not hidden and not any(part.is_symlink() for part in on_the_way)", "if path.is_file() and not hidden", (ARCHIVE, "-k", "no_regular_file")),
    Mutant("optimizer state not planned for", "planning/footprint.py", " + trained_at_once(spec) * FLOAT * states", "", ("tests/unit/planning/test_footprint.py", "-k", "checkpoint")),
    Mutant("a full disk only warns", "sweep/preflight.py", "if needed > free and certain:", "if False:", ("tests/unit/sweep/test_preflight.py", "-k", "disk")),
    Mutant("type and shape not hashed", "training/checkpoint.py", 'f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\\n"', 'f"{name}"', CHECKPOINT),
    # What ends an attempt, and what the next one makes of it.
    Mutant("a full disk is a bug", "causes.py", "errno.ENOSPC, ", "", ("tests/contract/test_disk.py",)),
    Mutant("a bug is tried again", "training/crash.py", "(may_pass(exit_status, reason) and not last_attempt)", "not last_attempt", RECORD),
    Mutant("a run outside the grid is recorded", "training/crash.py", " or not record or", " or", RECORD),
    Mutant("a plain kill halves", "training/attempt.py", 'if now["kills"] > then["kills"]:', "if True:", (MEMORY, "-k", "plain_kill")),
    Mutant("counts of another boot compared", "training/attempt.py", ' or then.get("boot") != now["boot"]', "", (MEMORY, "-k", "another_machine")),
    Mutant("the limit forgotten", "training/attempt.py", 'last["reductions"] if going_on else []', "[]", (MEMORY, "-k", "keeps_the_limit")),
    Mutant("the limit kept for ever", "training/attempt.py", 'same and last["ended"] not in FINISHED', "same", (MEMORY, "-k", "without_limits")),
    Mutant("a hybrid's backprop not split", "training/attempt.py", "if not used & BACKPROP:", 'if "query_budget_q" in used or not used & BACKPROP:', (MEMORY, "-k", "what_is_halved")),
    Mutant("a hybrid's parts forgotten", "training/attempt.py", ".model_copy(update=self.limits)", "", (MEMORY, "-k", "after_a_kill")),
    Mutant("parts that do not divide the batch", "training/attempt.py", "if spec.batch_size % n == 0", "if True", (MEMORY, "-k", "what_is_halved")),
    Mutant("a finished run repeated by a job that waited", "training/train.py", "if now == before or", "if True or", ("tests/contract/test_kills.py", "-k", "waited")),
    Mutant("any folder is a run's", "training/record.py", 'NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")', 'NAME = re.compile(r".*")', RECORD),
    Mutant("Random replayed along its estimate", "training/replay.py", "METHODS[state.spec.mode]().direction(state, estimate)", "estimate", (REPLAY, "-k", "Random")),
    Mutant("replay without the schedule", "training/replay.py", 'line["step"], line["learning_rate"]', 'line["step"], state.spec.learning_rate', (REPLAY, "-k", "cosine")),
    Mutant("backprop steps replayed", "training/replay.py", "if method.backward_passes(spec, step, outcome[\"step\"]):", "if False:", (REPLAY, "-k", "backprop")),
    # What a cluster's job asks for.
    Mutant("a job's memory without a margin", "planning/footprint.py", "MEMORY_MARGIN * own * spec.ranks + LAUNCHER_BYTES", "own", FOOTPRINT),
    Mutant("a GPU job's memory grows with the batch", "planning/footprint.py", "    if gpus:\n        own = CUDA", "    if not gpus:\n        own = CUDA", FOOTPRINT),
    Mutant("a job's time ignores its GPUs' number", "planning/footprint.py", "gpus * GPU_RATE or threads", "(GPU_RATE if gpus else 0) or threads", FOOTPRINT),
    Mutant("an epoch of a nominal corpus for ever", "planning/footprint.py", "spec.epochs * corpus_tokens", "spec.epochs * NOMINAL_TOKENS", FOOTPRINT),
    Mutant("a pass takes no time by itself", "planning/footprint.py", "(PASS_S + pass_work(spec) / rate)", "(pass_work(spec) / rate)", FOOTPRINT),
    # The analysis: what would win a comparison falsely.
    Mutant("seeds not paired", "analysis/intervals.py", "mean_interval(left[shared] - right[shared], confidence)", "mean_interval(np.sort(left[shared]) - np.sort(right[shared])[::-1], confidence)", (*INTERVALS, "-k", "paired")),
    Mutant("the sign of a difference", "analysis/intervals.py", "mean_interval(left[shared] - right[shared], confidence)", "mean_interval(right[shared] - left[shared], confidence)", (*INTERVALS, "-k", "paired")),
    Mutant("comparisons not counted", "analysis/intervals.py", "(1 - confidence) / max(1, comparisons)", "(1 - confidence)", (*INTERVALS, "-k", "bonferroni")),
    Mutant("a normal quantile for few seeds", "analysis/intervals.py", "stdtrit(n - 1, ", "stdtrit(10**9, ", (*INTERVALS, "-k", "scipys_paired")),
    Mutant("a bootstrap of three seeds", "analysis/intervals.py", "BOOTSTRAP_FROM = 10", "BOOTSTRAP_FROM = 2", (*INTERVALS, "-k", "few_seeds")),
    Mutant("a verdict from the narrow interval", "analysis/verdicts.py", "wide = [widen(gap, comparisons) for gap in gaps]", "wide = gaps", (*GUARDS, "-k", "counts_all")),
    Mutant("a guard's cost forgotten", "analysis/verdicts.py", "    if against:\n", "    if False:\n", (*GUARDS, "-k", "one_seed")),
    Mutant("FO ahead and behind swapped", "analysis/verdicts.py", "if gap.low > 0:", "if gap.high < 0:", (*GUARDS, "-k", "honest")),
    Mutant("the highest rate is inside", "analysis/guards.py", '"high edge": "highest", ', "", (*GUARDS, "-k", "edge")),
    Mutant("an untuned FO costs nothing", "analysis/scene.py", 'return self.compared if mode == "FO" else (mode,)', "return (mode,)", (*GUARDS, "-k", "edge")),
    Mutant("unequal budgets compared", "analysis/guards.py", "> TOLERANCE * theirs[kind])", "> 10 * theirs[kind])", (*GUARDS, "-k", "budget")),
    Mutant("a mean of survivors passes", "analysis/guards.py", 'if 0 < row["n"] < planned:', "if False:", (*GUARDS, "-k", "surviving")),
    Mutant("a repeat is a seed", "analysis/guards.py", "(seeds.isna().any() or seeds.duplicated().any())", "False", (*GUARDS, "-k", "repeats")),
    Mutant("a method that climbs has learned", "analysis/guards.py", "            if gap >= 0:", "            if gap >= 99:", (*GUARDS, "-k", "swapped")),
    Mutant("training loss passes for validation loss", "analysis/guards.py", '== "final_loss":', '== "nothing":', (*GUARDS, "-k", "taken_for")),
    Mutant("no control is missed", "analysis/guards.py", "    if missing:\n", "    if False:\n", (*GUARDS, "-k", "control")),
    Mutant("a lead that passes bought", "analysis/guards.py", "return leader if most[PASSES] > (1 + TOLERANCE) * least[PASSES] else None", "return None", (*GUARDS, "-k", "bought")),
    Mutant("FO's lead is never bought", "analysis/guards.py", 'most, least = (theirs, mine) if leader == "FO" else (mine, theirs)', "most, least = mine, theirs", (*GUARDS, "-k", "nor_does")),
    Mutant("a lead without a control", "analysis/guards.py", "\", \".join(remedies), scene.leads)", "\", \".join(remedies))", (*GUARDS, "-k", "control")),
    Mutant("an interval that holds 0 leads", "analysis/scene.py", 'return row["mode"] if row["minus_FO_high"] < 0 else None', 'return row["mode"] if row["minus_FO"] < 0 else None', (*GUARDS, "-k", "loses_nothing")),
    Mutant("kept weights lost with a kill", "training/loop.py", KEPT_FIRST, KEPT_LAST, (*KEPT, "-k", "killed")),
    Mutant("final weights of the run before", "training/record.py", "        self.final.unlink(missing_ok=True)\n", "", (METHODS, "-k", "run_before")),
    Mutant("a resumed run holds its checkpoint", "training/train.py", "    return run, logs  #", "    run.held = checkpoint\n    return run, logs  #", (METHODS, "-k", "no_copy_of_its_checkpoint")),
    Mutant("a file system without locks ends in a traceback", "files.py", "if error.errno not in NO_LOCKS:", "if True:", (*RECORD, "-k", "without_locks")),
    Mutant("kept weights of the run before", "training/train.py", "        files.drop_result()", "        pass", (*KEPT, "-k", "starts_over")),
    Mutant("places in the order of the flag", "training/probe_run.py", "places = sorted(set(places), key=place_order)", "places = list(places)", (*KEPT, "-k", "order")),
    Mutant("kept weights go before their probe", "sweep/prune.py", 'if kind == "kept":', "if False:", (*KEPT, "-k", "pruning")),
    Mutant("a study's backward_cost unread", "cli/reading.py", "cost = study.workflow.backward_cost if study else 2.0", "cost = 2.0", (*REPORT, "-k", "backward")),
    Mutant("a divergence in part unsaid", "analysis/guards.py", "        if gone and left:", "        if False:", (*GUARDS, "-k", "in_part")),
    Mutant("a beaten point on the front", "analysis/pareto.py", "(best < lowest)", "(best <= lowest + 1)", PARETO),
    Mutant("memory that FO does not fit in", "analysis/curves.py", "<= SLACK * limit", "<= np.inf", (*PARETO, "-k", "must_fit")),
    Mutant("backward passes at no price", "analysis/curves.py", "+ backward_cost * backward", "+ 0 * backward", (*PARETO, "-k", "price")),
    # The claims.
    Mutant("a claim rests on one comparison's interval", "analysis/claims/judge.py", "1 - (1 - LEVEL) / max(1, counts[claim.over])", "LEVEL", (CLAIMS, "-k", "scipys_paired")),
    Mutant("a claim decided by two seeds", "analysis/claims/judge.py", "MIN_SEEDS = 3", "MIN_SEEDS = 2", (CLAIMS, "-k", "fewer_than_three")),
    Mutant("a claim's doubts unheard", "analysis/claims/judge.py", "        doubts += comparison.doubts\n", "", (CLAIMS, "-k", "edge or climbs")),
    Mutant("a claim judged without an arm", "analysis/claims/judge.py", "doubts = [lacking] if lacking else []", "doubts = []", (CLAIMS, "-k", "one_scope_alone")),
    Mutant("one interval inside is enough", "analysis/claims/judge.py", "if not _is_inside(comparison, wide)]", "if not _is_inside(comparison, wide)][1:]", (CLAIMS, "-k", "holds_the_threshold")),
    Mutant("equal tokens counted beside equal steps", "analysis/claims/rules.py", "stands_for=int(not alike)", "stands_for=1", (CLAIMS, "-k", "scipys_paired")),
    Mutant("C5's sign", "analysis/claims/rules.py", "oppose(evidence, arms[-1], arms[0], STEPS, BELOW_0)", "oppose(evidence, arms[0], arms[-1], STEPS, BELOW_0)", (CLAIMS, "-k", "scipys_paired or every_claim")),
    Mutant("C6 without its margin", "analysis/claims/rules.py", "VARIANCE_MARGIN = 0.05", "VARIANCE_MARGIN = 0.0", (CLAIMS, "-k", "margin")),
    Mutant("ZO's phases need not have trained", "analysis/claims/rules.py", "what, budget, BELOW_0)", "what, budget)", (CLAIMS, "-k", "frozen_blocks")),
    Mutant("a schedule cut short passes", "analysis/claims/rules.py", "budget.amount * SLACK < end.amount", "False", (CLAIMS, "-k", "cuts_short")),
    Mutant("shares from ZO's side", "analysis/claims/compare.py", "(self.floor.losses - self.zo.losses) / (", "(self.zo.losses - self.fo.losses) / (", (CLAIMS, "-k", "share")),
    Mutant("rates tuned at the end for any budget", "analysis/claims/arms.py", "return read_at(curves, runs, budget.column, budget.amount)", "return read_last(curves, runs)", (CLAIMS, "-k", "best_at_the_budget")),
    Mutant("a rate that lacks a seed chosen for a claim", "analysis/claims/arms.py", 'and planned <= set(measured["seed"])', "", (CLAIMS, "-k", "lacks_a_seed or diverged_in_one")),
    Mutant("no edge for a claim's rates", "analysis/claims/arms.py", "if edge := flag_edge(rate, cell.tried):", 'if edge := "":', (CLAIMS, "-k", "edge")),
    Mutant("an arm that climbs is evidence", "analysis/claims/arms.py", 'elif losses.mean() >= runs["initial_val_loss"].mean():', "elif False:", (CLAIMS, "-k", "climbs")),
    Mutant("the largest model enters every claim", "analysis/claims/arms.py", "sizes[-1 if largest else 0]", "sizes[-1]", (CLAIMS, "-k", "memory_alone")),
    Mutant("best rates unrefined", "analysis/claims/arms.py", "    if i in (0, len(x) - 1) or not", "    if True or not", (CLAIMS, "-k", "refined or parabola")),
    Mutant("cosines are means, not roots of mean squares", "analysis/intervals.py", "*found, n = mean_interval(np.square(", "return mean_interval(np.abs(", (CLAIMS, "-k", "root_of_scipys")),
    Mutant("the best ratio stands for all", "analysis/claims/cosines.py", "worst = max(", "worst = min(", (CLAIMS, "-k", "one_bad_ratio")),
    Mutant("a cosine may rise with d", "analysis/claims/cosines.py", '"cos^2", measure, said, BELOW_0)', '"cos^2", measure, said)', (CLAIMS, "-k", "does_not_fall")),
    Mutant("the longest layer-wise schedule may be cut short", "analysis/claims/rules.py", 'float(max(evidence.curves[run]["step"].max() for run in runs))', 'float(min(evidence.curves[run]["step"].max() for run in runs))', (CLAIMS, "-k", "one_long")),
    Mutant("another embedding, the same floor", "analysis/claims/rules.py", "if len({phase[key] for phase in phases}) > 1", "if False", (CLAIMS, "-k", "embedding")),
    Mutant("C7 of training losses", "analysis/claims/arms.py", "(*doubts, *choice.faults)", "tuple(doubts)", (CLAIMS, "-k", "without_validation")),
    Mutant("a loss before its first measurement", "analysis/claims/arms.py", "not start <= budget.amount <=", "not budget.amount <=", (CLAIMS, "-k", "first_measurement")),
    Mutant("FO's memory with Adam against ZO's with SGD", "analysis/claims/rules.py", "if not alike:", "if False:", (CLAIMS, "-k", "other_settings")),
    Mutant("Gaussian laws for other directions", "analysis/claims/cosines.py", 'families == "gaussian"', 'families != ""', (CLAIMS, "-k", "other_directions")),
    Mutant("cosines at a bad eps", "analysis/claims/cosines.py", '"of the law", measure, said, region, doubts)', '"of the law", measure, said, region)', (CLAIMS, "-k", "bad_eps")),
    Mutant("the untrained loss is the first that was logged", "analysis/claims/arms.py", 'elif runs["initial_val_loss"].isna().any():', "elif False:", (CLAIMS, "-k", "untrained_loss")),
    Mutant("a lead at unknown passes", "analysis/guards.py", 'yield Finding("passes unknown", scene.where, message, remedy, leads)', 'yield Finding("passes unknown", scene.where, message, remedy)', (*GUARDS, "-k", "not_logged")),
    Mutant("backprop without a log of it is free", "analysis/curves.py", "none & backward.isna()", "backward.isna()", (*GUARDS, "-k", "not_logged")),
    Mutant("a context that was not logged is like none", "analysis/stats.py", "table[axis].isna() if pd.isna(row[axis]) else ", "", (SUMMARY, "-k", "fall_back")),
    Mutant("memory that was not logged does not fit", "analysis/curves.py", "limit = np.nan if pd.isna(peak) else limit", "pass", (*PARETO, "-k", "did_not_log")),
    Mutant("a withheld difference in bold", "analysis/report.py", 'pd.notna(row["minus_FO"]) and not row["verdict"].startswith(WITHHELD)', 'pd.notna(row["minus_FO"])', (*REPORT, "-k", "withheld_difference")),
    Mutant("a control called tuned", "analysis/figures/captions.py", 'best[~best["mode"].isin(stats.CONTROLS)]', 'best[best["mode"] != "Frozen"]', ("tests/unit/analysis/test_plots.py", "-k", "call_no_control")),
    Mutant("one q stands for all", "analysis/figures/captions.py", "for _, row in rows.iterrows()\n        ]\n        said.append(f\"{where}, at equal", "for _, row in rows.head(1).iterrows()\n        ]\n        said.append(f\"{where}, at equal", ("tests/unit/analysis/test_plots.py", "-k", "every_q_at_the_budget")),
    Mutant("verdicts older than the runs unmarked", "analysis/report.py", "st_mtime_ns > judged", "st_mtime_ns > 2 * judged", (*REPORT, "-k", "older_than")),
    Mutant("what runs wrote becomes markup", "analysis/report.py", "autoescape=True", "autoescape=False", (*REPORT, "-k", "markup")),
    # One run over several processes.
    Mutant("a direction evaluated by two ranks", "distributed/ranks.py", "start = rank * size + min(rank, larger)", "start = rank * size", PLACES),
    Mutant("no rank for what is left over", "distributed/ranks.py", "range(start, start + size + (rank < larger))", "range(start, start + size)", PLACES),
    Mutant("a batch script taken for a rank", "distributed/place.py", 'environment.get("SLURM_STEP_NUM_TASKS", 1)', 'environment.get("SLURM_NTASKS", 1)', PLACES),
    Mutant("a port of each rank's own", "distributed/place.py", "address, 20000 + step % 20000)", "address, 20000 + (step + rank) % 20000)", PLACES),
    Mutant("a bug of one rank tried again", "distributed/launch.py", "return min(causes) if causes else TRY_AGAIN", "return TRY_AGAIN", PLACES),
    Mutant("losses in the order of padded shares", "distributed/ranks.py", "[row[2 : 2 + k] for row, k in zip(received, shares, strict=True)]).view(n, width)", "[row[2:] for row in received])[: n * width].view(n, width)", ENGINE),
    Mutant("one rank's failure kept to itself", "distributed/ranks.py", "self._raise_together(received[:, 1], failure)", "self._raise_together(received[:, 1] * bool(failure), failure)", ENGINE),
    Mutant("no word of a rank out of memory", "distributed/ranks.py", "verdict = OUT_OF_MEMORY if failure and is_out_of_memory(failure) else verdict", "pass", ENGINE),
    Mutant("a signal of the first rank alone", "distributed/ranks.py", "int(received[:, 0].max())", "int(received[0, 0])", ENGINE),
    Mutant("a model's import keeps the group alive", "distributed/ranks.py", "import torch.distributed.nn.functional", "pass", (RANKS, "-k", "out_of_memory_makes")),
    Mutant("weights never compared", "distributed/ranks.py", "if found[rank] != found[0]]", "if found[rank] != found[rank]]", ENGINE),
    Mutant("gradients weighed as if shares were equal", "engine/replica.py", "(scale * weight * self._ranks.count)", "(scale / len(parts))", RANK_RUNS),
    Mutant("ranks resumed from the beginning", "training/train.py", "if orders.step is not None:", "if False:", (RANKS, "-k", "goes_on_with_other_numbers")),
    Mutant("no sign of life looked for", "distributed/heartbeat.py", "if now - self._heard > self._patience:", "if False:", (RANKS, "-k", "hung", "-m", "slow")),
    Mutant("a rank's current GPU is the first", "training/run.py", "        torch.cuda.set_device(device)\n", "        pass\n", (BENCH, "-k", "gpu_of_its_own")),
    # The benchmark.
    Mutant("all ranks timed on one GPU", "bench/ranks.py", "Workbench(setting, ranks)", "Workbench(setting)", (BENCH, "-k", "gpu_of_its_own")),
    Mutant("losses of all of inference's members at once", "bench/contenders.py", ".losses(rows)", ".losses()", (BENCH, "-k", "rows_at_once")),
    Mutant("MeZO's buffer counted as inference's", "bench/mezo.py", "self._buffer = Scratch()", "self._buffer = Scratch(); self._buffer.take(parameters[0].shape, parameters[0])", (BENCH, "-k", "buffer")),
    Mutant("times lost with the memory column", "bench/timing.py", "    _present(setting, records, out)\n    if chunks", "    if chunks", (BENCH, "-k", "shown_and_saved")),
    Mutant("a turn's first step counts on a GPU", "bench/timing.py", "        bench.time(contender.step)\n", "", (BENCH, "-k", "first_step")),
    Mutant("a further grid keeps the study's length too", "study.py", "if any(key in grid for key in LENGTHS):", "if False:", STUDY),
    Mutant("of two specs of a name the first is taken", "study.py", "if runs.setdefault(spec.name, spec) != spec:", "if runs.setdefault(spec.name, spec) is None:", STUDY),
    Mutant("runs outside the grids take the last one's settings", "study.py", "study = Study(workflow, runs, _common_settings(config))", "study = Study(workflow, runs, _common_settings(grid))", STUDY),
    Mutant("an embedding beside its head multiplies", "planning/footprint.py", "- untied * embedding)", ")", FORECAST),
    Mutant("a planned backward pass as one forward", "planning/forecast.py", "BACKWARD_COST * passes[1])", "passes[1])", FORECAST),
    Mutant("a crashed run planned as done", "planning/progress.py", 'get("status") in FINISHED', 'get("status")', FORECAST),
    Mutant("made steps planned again", "planning/forecast.py", "max(0, total - made)", "total", FORECAST),
    Mutant("validations planned as free", "planning/forecast.py", "equal_steps = steps + validation_passes", "equal_steps = steps + 0 * validation_passes", FORECAST),
    Mutant("the shortest planned to start first", "planning/forecast.py", "key=lambda job: -job[2]", "key=lambda job: job[2]", FORECAST),
    Mutant("a job starts when the first of its slots is free", "planning/forecast.py", "taken[-1] + seconds", "taken[0] + seconds", FORECAST),
    Mutant("runs that share a GPU never hinder each other", "planning/forecast.py", "run.seconds_high * sharing,", "run.seconds_high,", FORECAST),
    Mutant("GPU-hours of ranks as of one GPU", "planning/forecast.py", "run.seconds_high * run.devices", "run.seconds_high", FORECAST),
    Mutant("an unbuilt corpus of no tokens", "planning/forecast.py", "if spec.epochs and train_tokens is None:", "if False:", FORECAST),
    Mutant("kept weights planned whatever the study keeps", "planning/storage.py", "return kept.get(keep, checkpoint_bytes(spec))", "return checkpoint_bytes(spec)", FORECAST),
    Mutant("finished weights planned for that a study drops", "planning/storage.py", "checkpoints_kept(spec, flow.keep)", 'checkpoints_kept(spec, "checkpoint")', ("tests/unit/sweep/test_preflight.py", "-k", "disk")),
    Mutant("coefficients planned as one number", "planning/storage.py", "numbers = spec.query_budget_q *", "numbers = 1 *", FORECAST),
    Mutant("a GPU planned with a CPU's finished runs", "planning/pace.py", "return on_gpu == gpus and", "return", PACE),
    Mutant("planned with finished runs of other threads", "planning/pace.py", 'manifest.get("threads") == threads', "True", PACE),
    Mutant("runs of any q are of one class", "planning/pace.py", '"cosine_target",', '"cosine_target", "query_budget_q",', PACE),
    Mutant("a class for each seed", "planning/pace.py", '"seed",', "", PACE),
    Mutant("a step's time told from what a user says though it was measured", "planning/pace.py", "if key in self.measured:", "if key in self.measured and not self.flops:", PACE),
    Mutant("launches of a pass for each direction in flight", "planning/pace.py", "passes / members_in_flight(spec, device)", "passes", PACE),
    Mutant("a utilization that is not used", "planning/pace.py", "(utilization, utilization)", "(1.0, 1.0)", PACE),
    Mutant("a rank timed with all directions", "planning/measure.py", "-(-getattr(spec, key) // spec.ranks)", "getattr(spec, key)", MEASURE),
    Mutant("a period timed by its backprop step", "planning/measure.py", "spent / sum(map(len, kinds))", "take_step(kinds[-1][0])", MEASURE),
    # What a review found.
    Mutant("a model in training mode is believed", "engine/sharing.py", "if model in _trusted or", "if model.training or model in _trusted or", (*ARCHITECTURES, "-k", "keep_its_sequences")),
    Mutant("a model that drops out is tried as it is", "engine/sharing.py", "module.training = False", "pass", (*ARCHITECTURES, "-k", "drops_out")),
    Mutant("a model is left in eval mode", "engine/sharing.py", "            module.training = True", "            pass", (*ARCHITECTURES, "-k", "drops_out")),
    Mutant("parameters that are not seen are noise", "engine/estimate.py", "    if not used:", "    if False:", (*ESTIMATE, "-k", "cannot_be_seen")),
    Mutant("unused parameters are not named", "engine/estimate.py", "    if len(used) == count:", "    if used:", (*ESTIMATE, "-k", "does_not_use or do_not_use or not_use")),
    Mutant("Calibrate logs the guide's loss", "methods.py", "loss, forwards = evaluate(state.objective(batch), state.ranks), passes + 1", "forwards = passes + 1", (METHODS, "-k", "own_batch")),
    Mutant("a checkpoint is copied", "training/checkpoint.py", "            file.write(_bytes_of(tensors[name]))", "            file.write(b''.join(_bytes_of(tensors[n]).tobytes() for n in order) if name == order[0] else b'')", (*CHECKPOINT, "-k", "costs_no_copy")),
    Mutant("a file server's bad moment is damage", "training/checkpoint.py", "except (SafetensorError, ValueError, KeyError) as error:\n            complaints", "except (SafetensorError, OSError, ValueError, KeyError) as error:\n            complaints", (*CHECKPOINT, "-k", "no_damaged_one")),
    Mutant("the first attempt's plan forgotten", "training/train.py", "attempt.plan | limits", "limits", (MEMORY, "-k", "first_checkpoint")),
    Mutant("a full disk at a folder's making is the user's", "files.py", "        if error.errno in MACHINE_ERRORS:\n            raise\n", "", (*RECORD, "-k", "no_mistake_of_the_user")),
    Mutant("a GPU that is not there is taken as given", "sweep/gpus.py", "    if lost and not visible:", "    if not visible:\n        return list(wanted)\n    if lost and not visible:", (*GPUS, "-k", "where_there_is_none")),
    Mutant("layer-wise arms need no control", "analysis/guards.py", 'bool(there & {"LayerwiseFO", "LayerwiseZO"})', "False", (*GUARDS, "-k", "layer_wise")),
    # What a newcomer's mistakes found.
    Mutant("an out that is looked at after the work", "files.py", "    if path is None:\n        return\n    if path.is_dir():", "    return\n    if path.is_dir():", (MISTAKES, "-k", "before_anything")),
    Mutant("an unknown flag passes", "cli/__init__.py", "    if left:\n", "    if False:\n", (MISTAKES, "-k", "not_there")),
    Mutant("argparse's own page of usage", "cli/__init__.py", "    parser = Parser(\n", "    parser = argparse.ArgumentParser(\n", (MISTAKES, "-k", "not_there")),
    Mutant("any device of torch's is taken", "training/run.py", 'device is None or device.type not in ("cpu", "cuda")', "device is None", (MISTAKES, "-k", "no_device")),
    Mutant("a default learning rate is not said", "training/train.py", 'if "learning_rate" not in spec.model_fields_set', "if False", (MISTAKES, "-k", "not_chosen")),
    Mutant("any learning rate is called the default", "training/train.py", 'if "learning_rate" not in spec.model_fields_set', "if True", (MISTAKES, "-k", "not_chosen")),
    Mutant("the last of two equal keys wins", "study_file.py", "if before is not key and not", "if False and not", ("tests/unit/test_study.py", "-k", "stands_twice")),
    Mutant("a length that some runs have is the same in all", "analysis/summary.py", "values.nunique(dropna=False) != 1 or values.isna().any()", "values.nunique() != 1", (SUMMARY, "-k", "some_runs_do_not")),
    Mutant("a control's gap hides what is the same", "analysis/summary.py", "runs.loc[reads & ~lost, axis]", "runs.loc[~lost, axis]", (SUMMARY, "-k", "a_control")),
    Mutant("a crash's gap hides what is the same", "analysis/summary.py", "runs.loc[reads & ~lost, axis]", "runs.loc[reads, axis]", (SUMMARY, "-k", "a_control")),
    Mutant("a cost of 0 has a logarithm", "analysis/intervals.py", " & (costs > 0)", "", (*INTERVALS, "-k", "without_a_cost")),
    Mutant("claims that are stale are shown", "cli/reading.py", "study is None or study.workflow.claims", "True", (*REPORT, "-k", "no_longer_asks")),
    Mutant("a prune's lock that NFS refuses", "sweep/prune.py", 'open(files.lock, "r+")', "open(files.lock)", (*PRUNE, "-k", "nfs")),
    Mutant("a cache pruned with what it is", "sweep/prune.py", "if path.name != CACHE_KEPT)", ")", (*PRUNE, "-k", "caches")),
    Mutant("a pruned cache gets a younger meta.json", "data/dataset.py", '        if path.name != "meta.json":\n            os.rename', "        if True:\n            os.rename", (DATASET, "-k", "pruned")),
    Mutant("a pruned cache of other tokens put together", "data/dataset.py", "    if now != then:", "    if False:", (DATASET, "-k", "pruned")),
    Mutant("all build a pruned cache at once", "data/dataset.py", "if _is_pruned(folder) else nullcontext()", "if False else nullcontext()", (DATASET, "-k", "pruned")),
    Mutant("a run of another length planned as done", "planning/progress.py", "    return not stored or find_other_setting(spec, stored) is None", "    return True", (*FORECAST, "-k", "another_length")),
    Mutant("two slots of a GPU are two GPUs", "sweep/gpus.py", "if gpus_per_run * ranks <= there:", "if gpus_per_run <= there:", (*GPUS, "-k", "in_words")),
    Mutant("GPUs without cores", "planning/footprint.py", "[] if cores is None else", "[] if slots or cores is None else", ("tests/unit/planning/test_footprint.py", "-k", "at_once")),
    Mutant("weights for a probe take no room", "planning/storage.py", " + len(flow.probe_steps) * at_a_step", "", (*FORECAST, "-k", "probe")),
    Mutant("ranks share what cannot be divided", "planning/footprint.py", "return parts / math.ceil(parts / spec.ranks)", "return min(spec.ranks, parts)", ("tests/unit/planning/test_footprint.py", "-k", "wait_for_the_one")),
    Mutant("a run of few steps tells the pace", "planning/pace.py", "if steps < LEAST_STEPS:", "if steps < 1:", (*PACE, "-k", "first_steps")),
    Mutant("a length too short for a step passes", "spec.py", "if not self.epochs:  # which", "if self.max_steps:  # which", ("tests/unit/test_spec.py", "-k", "whole_steps")),
    Mutant("one place without weights ends a probe", "training/probe_run.py", "            lacking.append(error)\n            continue\n", "            raise\n", (*KEPT, "-k", "passed_over")),
    Mutant("leftovers of a killed build stay", "data/dataset.py", "    _remove_leftovers(root, prefix)\n", "", (DATASET, "-k", "killed_builders")),
    Mutant("a build at work is deleted", "data/dataset.py", "if free and not young:", "if not young:", (DATASET, "-k", "killed_builders")),
    Mutant("a build that does not lock its folder", "data/dataset.py", "    with _held(aside):\n", "    if True:\n", (DATASET, "-k", "holds_its_folder")),
    Mutant("a replay of what has no direction", "training/replay.py", 'if method.uses and not hasattr(method, "direction"):', "if False:", (REPLAY, "-k", "its_direction")),
    Mutant("parameters must be contiguous to be read", "engine/philox.py", "_flat(base.contiguous())", "_flat(base)", (*ESTIMATE, "-k", "contiguous")),
    Mutant("parameters must be contiguous to be updated", "engine/noise.py", " or not theta.is_contiguous()", "", (*ESTIMATE, "-k", "contiguous")),
    Mutant("a control that blew up flattens the axis", "analysis/figures/panels.py", "high = min(high, ceiling) if np.isfinite(ceiling) else high", "pass", ("tests/unit/analysis/test_plots.py", "-k", "blows_up")),
    Mutant("one loss axis for all models", "analysis/figures/panels.py", "return Scale(tuple(cell[axes].astype(str)), losses.min(), find_ceiling(own, losses))", "return Scale((), rows[column].min(), find_ceiling(runs, rows[column]))", ("tests/unit/analysis/test_plots.py", "-k", "blows_up")),
    # What a second review found.
    Mutant("old weights go on with another text", "training/train.py", "elif reads_other_text(resolved, checkpoint.state):", "elif False:", (*STARTING_OVER, "-k", "text_changed")),
    Mutant("the guide's text may change", "training/run.py", "dict.fromkeys([self.data.folder.name, self.guide_data.folder.name])", "[self.data.folder.name]", (*STARTING_OVER, "-k", "text")),
    Mutant("one text by two paths is two", "training/run.py", "list(dict.fromkeys(wanted.folder_name() for wanted in caches_of(spec)))", "[wanted.folder_name() for wanted in caches_of(spec)]", (*STARTING_OVER, "-k", "is_the_same")),
    Mutant("an orphan's result of another text", "training/train.py", " or reads_other_text(spec, manifest)", "", (*STARTING_OVER, "-k", "orphan")),
    Mutant("old weights probed on another text", "training/probe_run.py", "if reads_other_text(spec, manifest):", "if False:", (*STARTING_OVER, "-k", "probed")),
    Mutant("a curve of other settings published", "training/train.py", "        files.drop_logs()", "        pass", (*STARTING_OVER, "-k", "other_settings")),
    Mutant("done while it is made again", "training/record.py", "        self.outcome.unlink(missing_ok=True)\n", "", (*STARTING_OVER, "-k", "no_longer_done")),
    Mutant("another merges.txt, the same tokenizer", "data/tokenizer.py", '".model", ".txt", ', '".model", ', ("tests/unit/data/test_tokenizer.py", "-k", "changed_file")),
    Mutant("a full disk is a lack of network", "causes.py", "return error.__cause__ is not None and is_machine_failure(error.__cause__)", "return False", ("tests/contract/test_disk.py", "-k", "download")),
    Mutant("a failing disk is a damaged corpus", "data/textfiles.py", "        if lies_with_machine(error):\n            raise\n", "", ("tests/unit/data/test_corpus.py", "-k", "fails_to_read")),
    Mutant("half a row published", "training/record.py", 'log[: log.rfind(b"\\n") + 1]', "log", (*RECORD, "-k", "not_published")),
    Mutant("a signal forgotten for lack of memory", "training/loop.py", "if self.received and kind not in (None, Interrupted):", "if False:", (MEMORY, "-k", "told_to_stop")),
    Mutant("FO reads a guide's batch", "training/run.py", ' and "bp_interval" in method.uses', "", (METHODS, "-k", "no_guides_batch")),
    Mutant("TF32 where who calls has it", "training/run.py", '    torch.set_float32_matmul_precision("highest")\n', "", ("tests/unit/training/test_threads.py", "-k", "nvidias")),
    Mutant("the tokenizer told twice", "analysis/stats.py", "if not _comes_with_the_size(runs, axis, axes)]", "]", ("tests/unit/analysis/test_stats.py", "-k", "not_told")),
    # What the statistics take in.
    Mutant("a run that blew up is done", "analysis/runs.py", "if blow_up := _tell_blow_up(column):", "if blow_up := None:", (RUNS, "-k", "blew_up")),
    Mutant("a run that came back has blown up", "analysis/runs.py", " or val[-1] <= NO_BETTER * start[0]", "", (RUNS, "-k", "came_back")),
    Mutant("training losses show no blow-up", "analysis/runs.py", 'np.fmax(column["loss"], column["val_loss"])', 'column["val_loss"]', (RUNS, "-k", "either_loss")),
    Mutant("a run that blew up is a point of C7's parabola", "analysis/runs.py", "if blow_up := _tell_blow_up(column):", "if blow_up := None:", (CLAIMS, "-k", "blew_up")),
    Mutant("a tie hides the edge", "analysis/stats.py", "return next((rate for rate in tied if flag_edge(rate, tried)), tied[0])", "return tied[0]", (STATS, "-k", "alike_the_one")),
    Mutant("a tie hides the edge from C7", "analysis/claims/arms.py", "flag_edge(settle_rate(dict(zip(rates, losses, strict=True)), rates), rates)", "flag_edge(rates[losses.argmin()], rates)", (CLAIMS, "-k", "as_good_as")),
    Mutant("one seed's neighbours tune all", "analysis/stats.py", '["size"].get(rate, 0) >= seeds]', '["size"].get(rate, 0) >= 0]', (*GUARDS, "-k", "neighbours")),
    Mutant("a rate that diverged was no try", "analysis/stats.py", "if rate in set(gone) or ", "if ", (*GUARDS, "-k", "the_one_seed")),
    Mutant("a control that diverged is not said", "analysis/answer.py", "elif len(_find_diverged(runs, zo, keys, control)):", "elif False:", (*GUARDS, "-k", "control_that_blew")),
    Mutant("seeds cut short pass", "analysis/mixups.py", "if short.any(axis=None):", "if False:", (*GUARDS, "-k", "before_the_others")),
    Mutant("other weights are one start", "analysis/mixups.py", "START_TOLERANCE = 0.01", "START_TOLERANCE = 1.0", (*GUARDS, "-k", "another_start")),
    Mutant("a copy is a seed", "analysis/mixups.py", "return points >= COPIED_POINTS and", "return False and", (*GUARDS, "-k", "copy_of")),
    Mutant("a thinned copy is a seed", "analysis/mixups.py", "first[shared].equals(second[shared])", "first.equals(second)", (*GUARDS, "-k", "copy_of")),
    Mutant("a log is its first row's", "analysis/mixups.py", "counts[(counts > 1).any(axis=1)]", "counts[(counts > 99).any(axis=1)]", (*GUARDS, "-k", "changes_within")),
    Mutant("arms differ in more than the method", "analysis/mixups.py", "for mode in arms if tell_apart(", "for mode in arms if False and tell_apart(", (*GUARDS, "-k", "no_methods_own")),
    Mutant("other contexts are not named", "analysis/mixups.py", "if free & apart.keys():", "if False:", (*GUARDS, "-k", "measured_alike")),
    Mutant("other contexts pass however measured", "analysis/mixups.py", "len(measures) == 1 and None not in measures", "True", (*GUARDS, "-k", "what_measured")),
    Mutant("noise of fewer steps", "analysis/mixups.py", "elif not (abs(taken / wanted - 1) <= TOLERANCE).any():", "elif False:", (*GUARDS, "-k", "fewer_steps")),
    Mutant("a lead over noise of another length", "analysis/mixups.py", 'Finding("control not alike", scene.where, message, remedy, scene.leads)', 'Finding("control not alike", scene.where, message, remedy)', (*GUARDS, "-k", "another_length")),
    Mutant("a claim on more than the method", "analysis/claims/compare.py", "{', '.join(apart.values())}\",) * bool(apart)", "{', '.join(apart.values())}\",) * 0", (CLAIMS, "-k", "more_than_the_method")),
    Mutant("a share on more than the method", "analysis/claims/compare.py", " + doubt_settings(*left.arms, *right.arms)", "", (CLAIMS, "-k", "more_than_the_method")),
    Mutant("rates of more than the method", "analysis/claims/rules.py", " + doubt_settings(fo.choice, own.choice)", "", (CLAIMS, "-k", "more_than_the_method")),
    Mutant("one loss target twice", "analysis/curves.py", "abs(target - other) > span / 20", "True", (STATS, "-k", "rounded_by")),
]  # fmt: skip


def run_tests(tests: tuple[str, ...], mutant: Mutant | None = None) -> tuple[int, str]:
    """Exit status and output of pytest in a copy of the tree; call it in a process of its own."""
    ignore = shutil.ignore_patterns("*.pyc", ".*")  # numba's machine code goes along: it takes 5 s to make
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        os.chdir(folder)
        for name in ("zo", "tests", "workflow"):
            shutil.copytree(ROOT / name, name, ignore=ignore)
        for name in ("pyproject.toml", "config.yaml"):
            shutil.copy(ROOT / name, folder)
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
    if (count := source.count(mutant.old)) != mutant.places:
        return f"the old text is found {count} times in zo/{mutant.file}, not {mutant.places}"
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
    if "numba.core.errors" in output:
        return f"ERROR: the mutant does not compile:\n{output[-1500:]}"
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
    width = max((len(m.file) for m in mutants), default=0)
    if arguments.list or not mutants:
        print(*(f"{m.file:{width}} {m.name}" for m in mutants), sep="\n")
        return 0 if mutants else 1
    start = time.monotonic()
    with make_pool() as pool, ThreadPoolExecutor(max_workers=2) as threads:
        unmutated = threads.submit(judge_unmutated, mutants, pool)
        verdicts = []
        for mutant, verdict in zip(mutants, threads.map(lambda m: judge(m, pool), mutants), strict=True):
            print(f"{verdict:10} {mutant.file:{width}} {mutant.name}", flush=True)
            verdicts.append(verdict)
        baseline = unmutated.result()
    killed = verdicts.count("killed")
    print(
        f"{killed} of {len(mutants)} killed in {time.monotonic() - start:.0f} s; without mutation: {baseline}"
    )
    return 0 if killed == len(mutants) and baseline == "passes" else 1


if __name__ == "__main__":
    sys.exit(main())
