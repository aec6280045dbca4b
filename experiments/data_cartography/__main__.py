from experiments.data_cartography import EXPERIMENT

EXPERIMENT.command()
