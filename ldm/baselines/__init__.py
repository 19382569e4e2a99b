"""Baselines of Table 2 (ESD, Concept Ablation, UCE, Forget-Me-Not), and SPEED, on the same frozen stack."""
