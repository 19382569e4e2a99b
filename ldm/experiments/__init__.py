"""Experiments that the four scripts run, in reading order:

    variants         the base model, with a prefix, or with edited weights
    pipeline         generates, scores and resumes images of people and prompts
    identity         rows of Table 1; identity_table from options, several_models for Figure 3
    quality          images of Table 2 in chunks; quality_table its rows
    drift, before_after, training_report    the final table of a training
    methods          baselines and attacks: method_options, method_builders, method_report
    identity_images  images of S_ID; new_people, attack_images for Figure 5
"""
