"""Read-outs of features: ridge, softmax regression, k-NN, and the way between patches and pixels."""
