"""A hook of mkdocs: says above a code block that the tests do not run why they do not."""

import re
from typing import Any

NOTEST = re.compile(r'^( *```python) notest="([^"]+)"$', re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """```python notest="reason" is a convention of the tests; the theme shows titles."""
    return NOTEST.sub(r'\1 title="Not run by the tests: \2"', markdown)
