"""Reading runs back, from CSV logs to the report.

``runs`` (a row for each run), ``curves``, ``stats`` (methods compared), ``guards`` (what takes a verdict
away), ``verdicts``, ``claims`` (the paper's), ``figures``, ``summary`` and ``report`` (what people read).
Nothing is imported here, so that ``zo.analysis.runs`` stays free of scipy, matplotlib and seaborn.
"""
