"""What leaves a run: adapters saved with a proof, merged models, model cards."""
