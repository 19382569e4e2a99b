"""What the four scripts run, read in this order:

    variants         the model as it is, with a prefix, or with edited weights
    pipeline         images of people and prompts: generated, scored, resumed
    identity         Table 1's rows; identity_table from options, several_models for Figure 3
    quality          Table 2's images in chunks; quality_table its rows
    drift, before_after, training_report    the end of a training
    methods          competing methods and attacks: method_options, method_builders, method_report
    identity_images  S_ID's images; new_people, attack_images for Figure 5
"""
