"""Many runs cheaply: activations of a stream, and many interventions for little more than one."""
