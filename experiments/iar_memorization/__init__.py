"""Memorization in image autoregressive models (arXiv 2509.00488): where VAR and RAR memorize, and what mitigates it."""
