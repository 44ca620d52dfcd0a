"""From a backbone to a small whole encoder, text to embedding: fewer layers and words, training, int8 ONNX."""
