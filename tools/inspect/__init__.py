"""A run's trajectories as one HTML page: see `tools.inspect.__main__`."""
