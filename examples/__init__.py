"""The example that ships with prebake: real questions, a simulated query log, a small model, the demo's settings."""
