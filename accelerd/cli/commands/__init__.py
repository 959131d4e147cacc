"""One module per command of accelctl; each has `add_arguments(parser)` and `run(context, args)`."""
