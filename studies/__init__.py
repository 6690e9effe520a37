"""Studies: many runs of train.py, and what their differences show.

Each run is a train.py in a process of its own, so the package imports no JAX.
"""
