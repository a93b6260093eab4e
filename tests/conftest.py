"""Puts this folder on the path, so that tests of every kind can use what several of them need."""
