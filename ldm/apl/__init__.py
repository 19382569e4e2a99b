"""Anonymization Prompt Learning (arXiv 2405.16895).

Read `step.py` first: the training step as the paper defines it. Then, in this order:

    prefix.py            [AP], the vectors that are learned (Eq. 2), or the context map in their place
    losses.py            L_ID and L_Reg (Eq. 5 to 7)
    fast_step.py         the same step in less time
    robust.py            the same step under attack, for a prefix that withstands uploaded embeddings; robust_tokens.py is its other form
    trainer.py           the training loop (section 3.5)
    look_ahead.py        batches with frozen predictions, from examples.py (S_ID and S_Reg) or from disk
    training_run.py      from the options of train.py to data and batches; launch.py, workers.py and acceleration.py run it
    transfer_routes.py   transfer to SDXL (section 4.2); transfer.py is its command
    enforcement.py       the prefix in a service; guard.py and protected_methods.py are its hooks, and its methods of the pipeline
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `AnonymizationPrompt` on first use: other parts of the package need not wait for it."""
    if name == "AnonymizationPrompt":
        from ldm.apl.enforcement import AnonymizationPrompt
        return AnonymizationPrompt
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
