"""Image autoregressive models (VAR and RAR), their tokenizers and checkpoints, and images drawn
from them."""
