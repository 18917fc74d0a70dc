"""Workers placed by an engine that people have: SLURM, Kubernetes, or this machine alone."""
