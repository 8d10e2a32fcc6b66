"""What runs will take before they start.

Of one: ``footprint`` (memory, passes, work), ``storage`` (bytes on disk), ``pace`` and ``measure`` (a step's
seconds). Of a study: ``progress`` (what is made), ``forecast``, ``forecast_table``. The evaluation plan of a
step is ``zo.engine.plan``.
"""
