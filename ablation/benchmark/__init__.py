"""Speed, beside a plain PyTorch loop."""
