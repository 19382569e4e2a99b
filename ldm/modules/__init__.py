"""Parts of the frozen model, and the one place where a learned prefix enters it."""
