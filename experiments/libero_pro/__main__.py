from experiments.libero_pro import EXPERIMENT

EXPERIMENT.command()
