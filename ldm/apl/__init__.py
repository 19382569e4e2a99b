"""Anonymization Prompt Learning (arXiv 2405.16895); read prefix, losses, trainer, transfer_routes, in this order."""
