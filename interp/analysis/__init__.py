"""What a model computes at its sites: probes, the logit lens, concept erasure, activation patching,
circuits, neuron shifts."""
