from experiments.reason_to_rote import EXPERIMENT

EXPERIMENT.command()
