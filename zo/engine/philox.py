"""Noise on a CPU: a counter in, a random number out; compiled, on all threads, in any order.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) turns a 64-bit key and a counter into 128 random
bits; Box and Muller's transform turns 64 of them into two normals. Element i of a stream depends on
(key, i) alone, so any part of a parameter's noise can be made by itself, on any thread. Only additions,
multiplications and square roots are used, each rounded as IEEE 754 says and none fused: a stream is the
same, bit for bit, on every CPU.

torch's own normal draws from a Mersenne twister on one thread: several times slower, from the start only.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numba import njit

GAUSSIAN, SIGNS, SIXTEEN_BITS = 0, 1, 2
"""Kinds of streams: normals, -1 or 1, whole numbers from 0 to 65535."""

_TILE = 4096
"""Elements made at a time where noise is used up at once: they stay in a core's nearest cache."""
_PART = 2**16
"""Elements of a part that one thread takes: large enough to be worth handing over."""

u4, u8, i4, f4 = np.uint32, np.uint64, np.int32, np.float32
_inline = njit(inline="always")


def _compiled(function: Callable) -> Callable:
    """To machine code that runs beside other threads; kept on disk where there is a place for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(nogil=True)(function)


_M0, _M1, _W0, _W1 = u8(0xD2511F53), u8(0xCD9E8D57), u8(0x9E3779B9), u8(0xBB67AE85)
_LOW, _32 = u8(0xFFFFFFFF), u8(32)


@_inline
def _philox(counter, k0, k1):
    """Four random words of 32 bits."""
    c0, c1, c2, c3 = u8(counter) & _LOW, u8(counter) >> _32, u8(0), u8(0)
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return u4(c0), u4(c1), u4(c2), u4(c3)


@_inline
def _radius(word):
    """sqrt(-2 ln u), u = (word + 1/2) / 2^32 but for its last bit; ln as in the Cephes library's logf."""
    u = (f4(i4(word >> u4(1))) + f4(0.5)) * f4(2.0**-31)
    bits = f4(u).view(np.uint32)
    exponent = i4(i4(bits - u4(0x3F3504F3)) >> 23)  # u = m 2^exponent, m in [sqrt(1/2), sqrt(2))
    m = u4(bits - u4(u4(exponent) << u4(23))).view(np.float32) - f4(1)
    p = f4(7.0376836292e-2)
    p = p * m + f4(-1.1514610310e-1)
    p = p * m + f4(1.1676998740e-1)
    p = p * m + f4(-1.2420140846e-1)
    p = p * m + f4(1.4249322787e-1)
    p = p * m + f4(-1.6668057665e-1)
    p = p * m + f4(2.0000714765e-1)
    p = p * m + f4(-2.4999993993e-1)
    p = p * m + f4(3.3333331174e-1)
    square = m * m
    log = p * m * square - f4(0.5) * square + m + f4(exponent) * f4(0.6931471805599453)
    return np.sqrt(max(f4(-2) * log, f4(0)))


@_inline
def _point(word):
    """A point of the unit circle: an angle within an eighth turn of 0 from 30 bits, then two reflections.

    Sine and cosine as in the Cephes library's sinf and cosf.
    """
    a = f4(i4(word & u4(0x3FFFFFFF)) - i4(0x20000000)) * f4(2.0**-30 * np.pi / 2)
    square = a * a
    sine = f4(-1.9515295891e-4)
    sine = sine * square + f4(8.3321608736e-3)
    sine = sine * square + f4(-1.6666654611e-1)
    sine = sine * square * a + a
    cosine = f4(2.443315711809948e-5)
    cosine = cosine * square + f4(-1.388731625493765e-3)
    cosine = cosine * square + f4(4.166664568298827e-2)
    cosine = cosine * square * square - f4(0.5) * square + f4(1)
    sign = f4(1) - f4(i4(word >> u4(31)) << 1)
    swap = (word & u4(0x40000000)) != u4(0)
    return sign * (sine if swap else cosine), sign * (cosine if swap else sine)


@_inline
def _four_normals(counter, k0, k1):
    a, b, c, d = _philox(counter, k0, k1)
    first, second = _radius(a), _radius(c)
    (x0, y0), (x1, y1) = _point(b), _point(d)
    return first * x0, first * y0, second * x1, second * y1


@_compiled
def _fill_normal(out, start, k0, k1):
    """out[i] = element start + i of the stream: four to a counter."""
    head = min(len(out), -start % 4)
    if head:
        four = _four_normals(start // 4, k0, k1)
        for i in range(head):
            out[i] = four[start % 4 + i]
    first, whole = (start + head) // 4, (len(out) - head) // 4
    body = out[head:]
    for j in range(whole):
        body[4 * j], body[4 * j + 1], body[4 * j + 2], body[4 * j + 3] = _four_normals(first + j, k0, k1)
    if head + 4 * whole < len(out):
        four = _four_normals(first + whole, k0, k1)
        for i in range(4 * whole, len(body)):
            body[i] = four[i - 4 * whole]


@_inline
def _write_bits(out, word, first):
    for i in range(len(out)):
        out[i] = f4(i4(u4(word >> u4(first + i)) & u4(1)) * 2 - 1)


@_compiled
def _fill_signs(out, start, k0, k1):
    """out[i] = element start + i of the stream of signs: a bit each, 128 to a counter."""
    i = 0
    while i < len(out):
        element = start + i
        a, b, c, d = _philox(element // 128, k0, k1)
        quarter, first = element % 128 // 32, element % 32
        word = a if quarter == 0 else b if quarter == 1 else c if quarter == 2 else d
        if element % 128 == 0 and i + 128 <= len(out):
            _write_bits(out[i : i + 32], a, 0)
            _write_bits(out[i + 32 : i + 64], b, 0)
            _write_bits(out[i + 64 : i + 96], c, 0)
            _write_bits(out[i + 96 : i + 128], d, 0)
            i += 128
        else:
            count = min(32 - first, len(out) - i)
            _write_bits(out[i : i + count], word, first)
            i += count


@_compiled
def _fill_sixteen_bits(out, start, k0, k1):
    """out[i] = element start + i of the stream of whole numbers below 2^16: four to a counter."""
    for i in range(len(out)):
        element = start + i
        a, b, c, d = _philox(element // 4, k0, k1)
        place = element % 4
        word = a if place == 0 else b if place == 1 else c if place == 2 else d
        out[i] = f4(i4(word >> u4(16)))


@_compiled
def _fill(kind, out, start, key):
    k0, k1 = key & _LOW, key >> _32
    if kind == GAUSSIAN:
        _fill_normal(out, start, k0, k1)
    elif kind == SIGNS:
        _fill_signs(out, start, k0, k1)
    else:
        _fill_sixteen_bits(out, start, k0, k1)


@_compiled
def _fill_part(lo, hi, kind, out, start, key):
    _fill(kind, out[lo:hi], start + lo, key)


@_compiled
def _fill_rows_part(lo, hi, kind, out, rows, key):
    for i in range(lo, hi):
        _fill(kind, out[i], rows[i] * out.shape[1], key)


@_compiled
def _perturb_part(lo, hi, kind, outs, base, scales, start, key):
    z = np.empty(_TILE, np.float32)
    for first in range(lo, hi, _TILE):
        n = min(_TILE, hi - first)
        _fill(kind, z[:n], start + first, key)
        for s in range(len(outs)):
            scale, out, theta = scales[s], outs[s, first : first + n], base[first : first + n]
            for i in range(n):  # of slices: LLVM vectorises plain indices only
                out[i] = theta[i] + scale * z[i]


@_compiled
def _sum_tile(kind, total, start, keys, weights):
    z = np.empty(len(total), np.float32)
    total[:] = 0
    for k in range(len(keys)):
        _fill(kind, z, start, keys[k])
        weight = weights[k]
        for i in range(len(total)):
            total[i] += weight * z[i]


@_compiled
def _sum_part(lo, hi, kind, total, start, keys, weights):
    for first in range(lo, hi, _TILE):
        _sum_tile(kind, total[first : min(first + _TILE, hi)], start + first, keys, weights)


@_compiled
def _add_part(lo, hi, kind, theta, alpha, start, keys, weights):
    total = np.empty(_TILE, theta.dtype)
    for first in range(lo, hi, _TILE):
        n = min(_TILE, hi - first)
        _sum_tile(kind, total[:n], start + first, keys, weights)
        part = theta[first : first + n]
        for i in range(n):
            part[i] += alpha * total[i]


# -- on torch tensors -----------------------------------------------------------------------------


def fill_(kind: int, out: torch.Tensor, start: int, key: int) -> torch.Tensor:
    """Write elements start, start + 1 ... of a stream into ``out``, contiguous, fp32 or fp64."""
    _spread(_fill_part, out.numel(), kind, _flat(out), start, np.uint64(key))
    return out


def fill_rows_(kind: int, out: torch.Tensor, rows: torch.Tensor, key: int) -> torch.Tensor:
    """Write rows of a matrix [V, d] of noise into ``out`` [n, d], by their numbers, [n] int64."""
    _fill_rows_part(0, len(rows), kind, out.numpy(), rows.numpy(), np.uint64(key))
    return out


def perturb_(
    kind: int, outs: torch.Tensor, base: torch.Tensor, scales: Sequence[float], start: int, key: int
) -> torch.Tensor:
    """outs[s] = base + scales[s] z for every scale, z made once; outs [S, *base.shape], of one dtype."""
    flat = outs.view(len(outs), -1).numpy()
    scales = np.array(scales, dtype=flat.dtype)
    _spread(_perturb_part, base.numel(), kind, flat, _flat(base.contiguous()), scales, start, np.uint64(key))
    return outs


def sum_(
    kind: int, total: torch.Tensor, weights: Sequence[float], start: int, keys: Sequence[int]
) -> torch.Tensor:
    """Set total = sum_i weights[i] z_i, in ``total``'s precision and in this order."""
    flat = _flat(total)
    keys, weights = np.array(keys, dtype=np.uint64), np.array(weights, dtype=flat.dtype)
    _spread(_sum_part, flat.size, kind, flat, start, keys, weights)
    return total


def add_sum_(
    kind: int, theta: torch.Tensor, alpha: float, weights: Sequence[float], start: int, keys: Sequence[int]
) -> torch.Tensor:
    """Theta += alpha sum_i weights[i] z_i; nothing larger than a tile is made."""
    flat = _flat(theta)
    keys, weights = np.array(keys, dtype=np.uint64), np.array(weights, dtype=flat.dtype)
    _spread(_add_part, flat.size, kind, flat, flat.dtype.type(alpha), start, keys, weights)
    return theta


def _flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().view(-1).numpy()


def _spread(kernel: Callable, size: int, *arguments) -> None:
    """Call kernel(lo, hi, ...) on parts of range(size), on as many threads as torch uses."""
    parts = [(lo, min(lo + _PART, size)) for lo in range(0, size, _PART)]
    threads = min(torch.get_num_threads(), len(parts))

    def work(first: int) -> None:
        for lo, hi in parts[first::threads]:
            kernel(lo, hi, *arguments)

    others = [_pool(threads).submit(work, thread) for thread in range(1, threads)]
    if parts:
        work(0)
    for other in others:
        other.result()


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="zo-noise")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
