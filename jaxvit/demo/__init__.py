"""The weights of the demo models, trained by `python -m experiments.pretrain`, and their model cards."""
