"""Forward passes with perturbed weights, and the gradient that is estimated from their losses.

To be read in this order: ``noise`` (what is drawn; on a CPU ``philox`` makes it), ``members`` and
``perturbed`` (how a forward pass sees weights that are stored nowhere), ``objective`` (the loss),
``estimate`` (g_hat). Tensors in, tensors out; no files, no settings.
"""
