from experiments.licence_headers import EXPERIMENT

EXPERIMENT.command()
