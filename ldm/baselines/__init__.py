"""The competition of Table 2 (ESD, Concept Ablation, UCE, Forget-Me-Not) and the attacks of section 4.4, on the same frozen stack."""
