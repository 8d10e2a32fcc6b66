"""Zeroth-order pretraining of small language models: the engine, and the sweeps that test it.

``from zo import zo_gradient_estimator`` is the library's entry; it imports torch when first used.
"""

__version__ = "0.1.0"
__all__ = ["zo_gradient_estimator"]


def __getattr__(name: str):
    if name in __all__:
        from zo.engine import estimate

        return getattr(estimate, name)
    raise AttributeError(f"module 'zo' has no attribute {name!r}")
