"""Experiments: how a paper is declared, run, judged and written up."""
