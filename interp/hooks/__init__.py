"""Temporary changes to a forward, which leave no trace: hooks, traces of calls, other forwards,
modes."""
