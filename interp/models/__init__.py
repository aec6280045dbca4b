"""Networks that the toolkit builds itself."""
