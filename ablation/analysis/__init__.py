"""What the runs of a study say: results, statistics, comparisons, the answer."""
