"""The model under study: batches, which tokens are predicted together, decoding, and Subject."""
