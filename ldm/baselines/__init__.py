"""Baselines of Table 2 (ESD, Concept Ablation, UCE, Forget-Me-Not), on the same frozen stack."""
