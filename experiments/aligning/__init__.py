"""What :mod:`experiments.alignment` is made of: the task, the methods, the training, and what comes out."""
