"""What a run computes with: policies of two kinds, critic, reference, and who writes the responses."""
