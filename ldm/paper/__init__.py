"""Tables and figures of the paper: the one place, beside the scripts, where method, baselines and metrics meet."""
