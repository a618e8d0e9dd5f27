"""What the two training stages share: opening and ending a run, tasks, micro-batches, the trial."""
