"""Weights of the demo models, trained by `python -m experiments.pretrain`."""
