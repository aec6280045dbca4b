"""How much is memorized: extraction of windows, and control windows to compare them with.

Which units hold the memory is the question of `interp.localization`.
"""
