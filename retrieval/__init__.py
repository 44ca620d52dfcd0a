"""Finding matches among many sentences: scores, hard negatives, and the pipeline that trains for it."""
