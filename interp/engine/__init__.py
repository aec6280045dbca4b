"""Many runs cheaply: activations over a stream of data, and many interventions on one batch."""
