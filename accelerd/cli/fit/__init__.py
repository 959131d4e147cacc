"""`accelctl fit`: will a model run on this machine, with what context, how fast."""
