"""What a study file may say, and what a trial is. No torch, MLflow or Optuna at import."""
