"""What to change in a network, as frozen data: interventions, the edits they amount to, and
plans."""
