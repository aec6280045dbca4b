"""The model under study: batches, which tokens it predicts together, decoding, and Subject."""
