"""Every operation that a person or a desktop tool can ask for. HTTP control, D-Bus and the CLI are adapters of it."""
