"""A study as it runs: session, workers, trials, outputs, champion."""
