"""From a recipe and pairs to the best encoder: recipes, the loop, teachers, resuming, reports."""
