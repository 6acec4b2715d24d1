"""Is all well on this machine? Every backend's results beside the core's, and how fast it is."""
