"""One file per claim, run as `python -m benchmarks.NAME`; each prints one JSON line with counts and machine."""
