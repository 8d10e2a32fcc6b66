"""Forward passes with perturbed weights, and the gradient that is estimated from their losses.

To be read in this order; tensors in, tensors out, no files, no settings:

- ``noise``: what is drawn, a function of a key (on a CPU by ``philox``); ``directions``: what is asked of it
- ``members``, ``perturbed``: how a forward pass sees weights that are stored nowhere; ``scratch``: its memory
- ``objective``: the loss of a batch; ``replica``: its backprop over several ranks
- ``plan``: how many directions at once; ``sharing``: whether a model allows it; ``estimate``: g_hat
- ``guidance``: directions around a gradient; ``rounding``: updates of bf16 weights
- ``laws``, ``landscape``, ``probe``: what an estimate should be, and what it is
"""
