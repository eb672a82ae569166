"""What is measured from weights: evaluations of trained models, and times of a training step."""
