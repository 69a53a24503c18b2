"""Training data of the embedded model: captioned emoji drawings, from pinned packages to batches."""
