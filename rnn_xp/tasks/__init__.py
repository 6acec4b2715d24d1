"""What recurrent networks are used for: one module a task, from data to a measured model."""
