"""CuPy: the ways to run a recurrence on a CUDA GPU, and the choice between them."""
