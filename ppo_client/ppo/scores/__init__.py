"""From responses to scores: asking the reward service, which version answers, on which scale."""
