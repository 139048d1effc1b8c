"""What a person runs: training, evaluation, export, measurements."""
