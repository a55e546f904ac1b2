"""LightningModules, their networks and optimizers."""
