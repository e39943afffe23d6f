"""From files on disk to records to batches; imports neither jax nor the library, because it runs in loader workers."""
