"""Anonymization Prompt Learning (arXiv 2405.16895); read prefix, losses, trainer, transfer_routes, enforcement, in this order."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`AnonymizationPrompt`, imported when it is asked for: whoever imports another part of the package waits for nothing else."""
    if name == "AnonymizationPrompt":
        from ldm.apl.enforcement import AnonymizationPrompt
        return AnonymizationPrompt
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
