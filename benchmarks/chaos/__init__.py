"""Random faults in random moments of runs on three nodes: `python -m benchmarks.chaos`."""
