"""The demo world: seeded people who perform micro-actions, and the tiny encoders trained on them."""
