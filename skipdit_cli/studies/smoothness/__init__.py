"""The study of smoothness: what perturbed weights, successive steps and small changes of the input do to features."""
