"""Zeroth-order pretraining of small language models: the engine, and the sweeps that test it.

Each part knows only those above it (tests/house/test_layers.py):

- ``errors``, ``causes``, ``files``, ``units``, ``layout``: what everything else is made with
- ``distributed``: the ranks of one run; ``engine``: the ZO estimate
- ``optimizers``, ``step``, ``methods``: what a step of each method does
- ``sizes``, ``models``; ``data``: text to batches
- ``fields``, ``lengths``, ``spec``: what a run is; ``study_file``, ``study``: the grid of many
- ``training``: one run as a process; ``analysis``: logs to tables, verdicts, figures, the report
- ``planning``: what runs will take; ``sweep``: many runs together; ``bench``: how fast a step is; ``cli``

``from zo import zo_gradient_estimator`` is the library's entry; it imports torch when first used.
"""

__version__ = "0.1.0"
__all__ = ["zo_gradient_estimator"]


def __getattr__(name: str):
    if name in __all__:
        from zo.engine import estimate

        return getattr(estimate, name)
    raise AttributeError(f"module 'zo' has no attribute {name!r}")
