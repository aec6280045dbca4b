"""The same plan elsewhere: `weights` (zeroed rows, no hooks), `nnsight` (local, hosted), `transformer_lens` and `captum`.

Peers are imported inside functions: nobody pays for one that is not used. What is not here: loading models (`checkpoints`, `subject`).
"""
