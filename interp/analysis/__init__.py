"""WHAT IS COMPUTED THERE: probes, the logit lens, concept erasure, activation patching, circuits,
neuron shifts."""
