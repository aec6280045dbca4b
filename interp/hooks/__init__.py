"""Temporary changes to a forward, undone afterwards: hooks, other forwards, modes, traces of
calls."""
