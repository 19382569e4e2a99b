"""Anonymization Prompt Learning (arXiv 2405.16895); read prefix, losses, trainer, in this order."""
