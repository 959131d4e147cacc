"""Other people's clients, through accelerd and directly against llama-server."""
