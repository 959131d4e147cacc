"""Which model is loaded, who waits, who leaves. Pure: requests, events and a clock in, effects out."""
