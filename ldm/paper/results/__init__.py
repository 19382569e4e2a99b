"""Tables, figures and claims from finished pieces of work."""
