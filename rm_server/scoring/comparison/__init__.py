"""Which version is better, and how sure that is: shadows, experiments, and the evidence for a promotion."""
