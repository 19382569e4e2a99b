"""Tables and figures of the paper. Reading order: config, runner, results, report."""
