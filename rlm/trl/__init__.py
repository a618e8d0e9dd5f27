"""TRL's trainers with our files: SFT, and GRPO for comparison."""
