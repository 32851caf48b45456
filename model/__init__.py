"""Pure learning: arrays, tensors and files in, the same out; knows nothing of the world around it."""
