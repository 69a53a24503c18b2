"""Training data of the embedded model: emoji drawings with captions, from packages to batches."""
