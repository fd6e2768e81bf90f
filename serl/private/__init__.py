"""What SERL touches of its libraries' private parts: one library a file, and a contract test for each.

Of transformers, what needs torch has a file of its own.

Every file names the version it was seen in (`SEEN_IN`), and every function why the public API is not enough.
After an upgrade the tests `test_private_*.py` say what has changed.
"""
