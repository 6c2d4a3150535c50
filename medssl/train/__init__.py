"""Training that can be trusted: run folders, checkpoints, the step engine and `pretrain`."""
