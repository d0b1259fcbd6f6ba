"""One tiny random checkpoint per family of models, and what of the engine holds for it."""
