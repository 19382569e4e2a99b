"""Training data of the method (paper section 4.1): S_ID, S_Reg, prompt templates and the seeded mixture of both."""
