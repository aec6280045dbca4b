from experiments.informia import EXPERIMENT

EXPERIMENT.command()
