"""The textbook, in fp64: estimators, update rules and the loss, written out plainly.

Imports nothing from zo. Noise enters as tensors; weights are dense; loops are explicit. A vector over all
parameters is a list of tensors, theta[p], and noise[i][p] is direction i's part at parameter p.
"""

import copy
import math

import numpy as np
import torch


def write_weights(model, parameters, theta):
    """A copy of ``model`` whose ``parameters`` hold ``theta``, ties kept; the copy's parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    clone = copy.deepcopy(model)
    by_name = dict(clone.named_parameters())
    copied = [by_name[names[id(parameter)]] for parameter in parameters]
    for parameter, value in zip(copied, theta, strict=True):
        parameter.data = value.detach().clone()
    return clone, copied


def language_model_loss(model, inputs, labels):
    """Mean of -log p(labels[b, t + 1] | inputs[b, :t + 1]) over the labels that are not -100."""
    logits = model(**inputs).logits
    terms = []
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1] - 1):
            target = labels[b, t + 1].item()
            if target != -100:
                terms.append(torch.logsumexp(logits[b, t], dim=0) - logits[b, t, target])
    return sum(terms) / len(terms)


def gradient(model, parameters, theta, inputs, labels):
    """The exact gradient at ``theta``, by autograd."""
    clone, copied = write_weights(model, parameters, theta)
    return list(torch.autograd.grad(language_model_loss(clone, inputs, labels), copied))


def directional_derivative(loss, theta, u, eps, sides="two"):
    """One direction's finite difference, and the losses it took (the shared base loss is not among them)."""
    plus = float(loss([value + eps * part for value, part in zip(theta, u, strict=True)]))
    if sides == "one":
        return (plus - float(loss(theta))) / eps, [plus]
    minus = float(loss([value - eps * part for value, part in zip(theta, u, strict=True)]))
    return (plus - minus) / (2 * eps), [plus, minus]


def estimate(loss, theta, directions, eps, sides="two", scale=1.0):
    """g_hat = scale/q sum_i coefficient_i u_i; the coefficients; the mean of all evaluated losses."""
    q = len(directions)
    g_hat = [torch.zeros_like(value) for value in theta]
    losses = [float(loss(theta))] if sides == "one" else []
    coefficients = []
    for u in directions:
        coefficient, evaluated = directional_derivative(loss, theta, u, eps, sides)
        coefficients.append(coefficient)
        losses.extend(evaluated)
        g_hat = [total + scale * coefficient * part / q for total, part in zip(g_hat, u, strict=True)]
    return g_hat, coefficients, sum(losses) / len(losses)


def dot(left, right):
    """Inner product over all parameters."""
    return sum(float((a * b).sum()) for a, b in zip(left, right, strict=True))


def norm(vector):
    """Euclidean norm over all parameters."""
    return math.sqrt(dot(vector, vector))


def cosine(left, right):
    """Cosine of the angle between two vectors over all parameters."""
    return dot(left, right) / (norm(left) * norm(right))


def directions_around(g, noise, c):
    """u_i = c g/|g| + sqrt(1 - c^2) n_i, n_i = z_i less its part along g, at unit length."""
    unit = [part / norm(g) for part in g]
    directions = []
    for z in noise:
        along = dot(z, unit)
        rest = [part - along * axis for part, axis in zip(z, unit, strict=True)]
        length = norm(rest)
        s = math.sqrt(1 - c**2)
        directions.append([c * axis + s * part / length for axis, part in zip(unit, rest, strict=True)])
    return directions


def instruct(loss, theta, g, noise, c, eps, sides="two"):
    """The estimate along directions of cosine c with g; 1/c^2 makes it unbiased."""
    return estimate(loss, theta, directions_around(g, noise, c), eps, sides, scale=1 / c**2)


# -- update rules: (theta, g_hat, memory, step, lr) -> theta, memory being a dict they fill --------


def sgd(theta, g, memory, step, lr):
    """Plain SGD."""
    return [value - lr * part for value, part in zip(theta, g, strict=True)]


def momentum_sgd(mu, decay=0.0):
    """Heavy ball: b <- mu b + g, theta <- theta - lr b; ``decay`` is L2 in the gradient."""

    def update(theta, g, memory, step, lr):
        g = [part + decay * value for part, value in zip(g, theta, strict=True)]
        old = memory.get("buffer", [torch.zeros_like(value) for value in theta])
        memory["buffer"] = [mu * b + part for b, part in zip(old, g, strict=True)]
        return [value - lr * b for value, b in zip(theta, memory["buffer"], strict=True)]

    return update


def adam(decay=0.0, decoupled=False, betas=(0.9, 0.999), eps=1e-8):
    """Adam (Kingma and Ba) with L2 in the gradient, or AdamW's decoupled decay."""

    def update(theta, g, memory, step, lr):
        b1, b2 = betas
        if not decoupled:
            g = [part + decay * value for part, value in zip(g, theta, strict=True)]
        zeros = [torch.zeros_like(value) for value in theta]
        memory["m"] = [b1 * m + (1 - b1) * x for m, x in zip(memory.get("m", zeros), g, strict=True)]
        memory["v"] = [b2 * v + (1 - b2) * x**2 for v, x in zip(memory.get("v", zeros), g, strict=True)]
        new = []
        for value, m, v in zip(theta, memory["m"], memory["v"], strict=True):
            direction = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
            new.append(value - lr * direction - (lr * decay * value if decoupled else 0))
        return new

    return update


def trajectory(theta, gradient_at, update, rates):
    """[theta_0, ..., theta_steps]; ``gradient_at(theta, step)`` is whatever the method descends along."""
    memory, path = {}, [theta]
    for step, lr in enumerate(rates, start=1):
        path.append(update(path[-1], gradient_at(path[-1], step), memory, step, lr))
    return path


# -- random numbers ---------------------------------------------------------------------------------


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011, section 3.3): four 32-bit words, a key of two."""
    x, (k0, k1) = list(counter), key
    for _ in range(10):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [right >> 32 ^ x[1] ^ k0, right & 0xFFFFFFFF, left >> 32 ^ x[3] ^ k1, left & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x


def box_muller(first: int, second: int) -> tuple[float, float]:
    """Two normals of two 32-bit words, in fp64 but for u, which is rounded to fp32's 24 bits."""
    u = float(np.float32(first >> 1) + np.float32(0.5)) / 2**31
    radius = math.sqrt(-2 * math.log(u))
    angle = ((second & 0x3FFFFFFF) / 2**30 - 0.5) * math.pi / 2
    x, y = math.cos(angle), math.sin(angle)
    if second & 0x40000000:
        x, y = y, x
    sign = -1 if second & 0x80000000 else 1
    return sign * radius * x, sign * radius * y
