"""Test suites for trained policies: GLAM's generalisation tests."""
