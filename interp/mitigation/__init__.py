"""What removes a memory, and what that costs: the extraction drop of an ablation compared with its
controls, and unlearning, which trains a model to forget."""
