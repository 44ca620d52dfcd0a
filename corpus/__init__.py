"""A corpus of sentences: encoded in parts that survive being killed, searched, its near-duplicates found."""
