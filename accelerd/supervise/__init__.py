"""Running instances: start, readiness, stop, proof of the end. Decides nothing about models."""
