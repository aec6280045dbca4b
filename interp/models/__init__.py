"""Networks that the toolkit builds itself: image autoregressive models and their tokenizers."""
