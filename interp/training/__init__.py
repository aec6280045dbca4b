"""Training: `fit`, the one training loop, and the state from which it continues, bit for bit."""
