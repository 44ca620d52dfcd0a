"""Everything before a batch: the challenge's files, text, backbones, and the token stores made from them."""
