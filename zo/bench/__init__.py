"""What a ZO step costs, against pure inference, an FO step and MeZO: ``python -m zo bench``.

One process, one model, one batch, one number of threads; the contenders take turns, so that a slow minute
of the machine slows all of them, and only ratios of one run are meant to be read.
"""
