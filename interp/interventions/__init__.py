"""WHAT to change, as plain data: the kinds of intervention, the affine edits they come down to, and
plans."""
