"""Closed forms and fine reference solutions that tests and reports compare with."""
