"""Requests: each module reads those of one API into the neutral form, and writes them."""
