"""Read-outs of features: ridge, few-shot, softmax regression, SGD, k-NN, and the way between patches and pixels."""
