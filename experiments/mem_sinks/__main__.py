from experiments.mem_sinks import EXPERIMENT

EXPERIMENT.command()
