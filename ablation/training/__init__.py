"""Training: frozen features, the loop, evaluation, resume checkpoints."""
