"""Workers placed by an engine that people have: SLURM, Ray, Kubernetes, or this machine alone."""
