"""What models need of memory and what they use: headers, estimates, measurements, the ledger, lessons, pressure.

Must never start, stop or choose a model: that is the scheduler's.
"""
