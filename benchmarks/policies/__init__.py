"""Accept length of every pruning policy side by side, on prompts that none was tuned on."""
