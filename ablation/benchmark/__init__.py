"""Speed, beside a plain PyTorch loop."""

SMALL_TRIALS = 10  # measured at the start of a store, and again once it is full; here, so that `--help` is quick
