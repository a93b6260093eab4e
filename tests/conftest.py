"""What all tests share: this folder is on the path; property tests draw the same examples every time, untimed."""

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None, database=None, max_examples=30)
settings.load_profile("steady")
