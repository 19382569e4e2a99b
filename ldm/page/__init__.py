"""A web page that compares images without and with prefixes: python -m ldm.page --preset mini (needs the optional package Gradio)."""
