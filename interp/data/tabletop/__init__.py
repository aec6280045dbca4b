"""A light tabletop for policies: scenes and their perturbations, a simulator with the interface of
LIBERO, a scripted expert and its demonstrations."""
