"""Everything that turns a recipe and pairs into the best encoder: the loop, teachers, resuming, reports."""
