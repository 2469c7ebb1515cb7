"""Cache -> trained head. Reads the cache through ``pipeline.store.reader`` only; never sees a video."""
