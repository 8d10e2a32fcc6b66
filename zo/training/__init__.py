"""One run as a process: ``train`` is all of it, ``run`` what it is in memory, ``loop`` its loop.

What it leaves: ``record`` (logs), ``checkpoint``, ``ledger`` (what was spent), ``job`` (for those who watch),
``attempt`` and ``crash`` (what went wrong). ``replay`` and ``probe_run`` go over a finished one again.
"""
