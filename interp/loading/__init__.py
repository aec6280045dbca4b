"""Loading: makes a Subject with verified sites from files or from a model in memory."""
