"""A code model knows licence headers by heart: the commands of the toolkit on text that a real model memorized in pretraining."""
