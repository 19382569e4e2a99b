"""Attacks on a model (paper section 4.4): DreamBooth and textual inversion teach it a new person from photos."""
