"""Read-outs of features: ridge, k-NN, and the way between patches and pixels."""
