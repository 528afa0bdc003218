"""A run on Slurm: what is submitted, what is known of it, and what its jobs run."""
