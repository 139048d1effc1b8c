"""What `experiments.reach` shows beside the reach itself."""
