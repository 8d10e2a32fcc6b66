"""One run over several processes.

``launch`` starts them, ``place`` says which is which, ``ranks`` is what they say to one another,
``heartbeat`` how one notices that another is gone.
"""
