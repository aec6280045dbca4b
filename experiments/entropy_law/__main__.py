from experiments.entropy_law import EXPERIMENT

EXPERIMENT.command()
