from experiments.planted_leak import EXPERIMENT

EXPERIMENT.command()
