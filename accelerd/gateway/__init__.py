"""HTTP for inference: requests in, responses out. Knows no processes."""
