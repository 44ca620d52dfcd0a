"""What a trained encoder gives: checkpoints, embeddings, scores, calibration, maps, explanations."""
