"""Probes of features: ridge, few-shot, logistic, SGD and k-NN, and segmentation from patches."""
