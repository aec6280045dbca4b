from experiments.iar_memorization import EXPERIMENT

EXPERIMENT.command()
