"""What to do with a trained encoder: checkpoints, embeddings, scores, calibration, maps, explanations."""
