"""What experiments are declared with."""
