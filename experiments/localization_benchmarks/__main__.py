from experiments.localization_benchmarks import EXPERIMENT

EXPERIMENT.command()
