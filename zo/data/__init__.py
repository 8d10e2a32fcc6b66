"""Text to batches: ``textfiles``, ``corpus`` (documents), ``tokenizer``, the token cache.

``dataset`` builds the cache, ``token_cache`` is what runs read of it.
"""
