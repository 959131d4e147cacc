"""What models need: the header of a GGUF file. Must do no I/O in the ledger, and know neither processes nor devices."""
