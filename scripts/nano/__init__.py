"""The parts of `scripts/make_nano.py`: what the bundled nano model is taught, and how it is measured."""
