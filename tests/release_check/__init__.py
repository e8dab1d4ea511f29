"""Check a release as its users will install it: `make release-check`.

The check builds the sdist and the wheel from a copy of this checkout, and installs the wheel into fresh
environments, one for each supported Python and one for each extra. All files that it writes are in one
temporary folder, which is removed at the end.
"""
