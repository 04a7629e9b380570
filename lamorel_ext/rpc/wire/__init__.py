"""The wire format: frames, fields, nested values. No pickle."""
