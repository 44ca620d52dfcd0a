"""A corpus of sentences: encoded in resumable parts, searched, its near-duplicates found."""
