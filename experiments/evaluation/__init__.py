"""What experiments.evaluate tells beside accuracies: of each class, and of each picture that is wrong."""
