"""What `accelctl doctor` checks, one topic per module. A check is a function of CheckContext and never raises."""
