"""Text to tokens to batches: ``corpus``, ``tokenizer``, ``dataset``, and ``token_cache``, which runs read."""
