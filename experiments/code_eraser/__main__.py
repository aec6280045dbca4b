from experiments.code_eraser import EXPERIMENT

EXPERIMENT.command()
