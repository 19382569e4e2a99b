"""Tables, figures and claims from finished jobs."""
