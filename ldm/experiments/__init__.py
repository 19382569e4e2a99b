"""Experiments that the four scripts run, in reading order:

    variants            the base model, with a prefix, or with edited weights
    pipeline            generates, scores and resumes images of people and prompts
    identity, drift     rows of Table 1 and of the change without names; several_models for Figure 3, identity_table for existing images
    quality             images of Table 2 in chunks; quality_table its rows
    training_report     the final table and image grid of a training
    methods             baselines and attacks; method_builders builds them from options
    identity_images     images of S_ID; new_people for Figure 5
"""
