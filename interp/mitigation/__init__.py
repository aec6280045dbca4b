"""What removes a memory, and what that costs: the extraction drop of an ablation beside its
controls."""
