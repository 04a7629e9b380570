"""Lamorel's interface: a Lamorel user's scripts run here without a changed line. See
``docs/migration.md``.
"""
