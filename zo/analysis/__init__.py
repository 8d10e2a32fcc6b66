"""Reading runs back: CSV logs to tables, statistics, plots and a summary.

Nothing is imported here, so that ``zo.analysis.runs`` stays free of scipy, matplotlib and seaborn.
"""
