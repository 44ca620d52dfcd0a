"""Everything before a batch: readers of files and text, backbones, and the token stores made from them."""
