"""Names to models: what a name in a request means, and which model of a route is to answer. Pure: no I/O, no state."""
