"""Tables and figures of the paper: configs, and runner, results and report, in this order."""
