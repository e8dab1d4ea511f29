"""Check that the docstring of each function of the package begins with a verb."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "polarmap"
PROPERTIES = {"property", "cached_property", "setter"}  # Their docstrings are noun phrases.

# The first words of docstrings of functions, each a verb in the imperative. Add a verb if none of these fits.
VERBS = set(
    # A list of strings would be one line for each verb.
    """
    Abandon Accept Add Advance Allocate Allow Answer Append Apply Approximate Arrange Ask Assemble Assign
    Authenticate Await Begin Block Bound Build Cache Call Cancel Check Choose Claim Clear Close Collect
    Combine Compare Compile Complete Compute Concatenate Configure Connect Continue Convert Copy Count Create
    Cut Decide Declare Decode Decorate Decrypt Delete Deliver Derive Describe Discard Disconnect Display
    Divide Do Draw Drop Emit Encode Encrypt End Enter Estimate Evaluate Evict Execute Exit Explain Fail
    Fetch Fill Find Fit Forget Form Format Free Fulfil Fuse Generate Go Group Handle Hint Hold Ignore
    Import Improve Increase Integrate Invert Issue Join Judge Keep Kill Launch Leave Let Limit List Load
    Log Look Lower Make Map Mark Measure Memory-map Merge Minimize Mix Move Multiply Name Note Notify
    Open Pack Parse Partition Pass Pickle Pin Plot Poll Predict Prepare Print Project Put Query Queue
    Raise React Read Rebuild Receive Recommend Record Reduce Refuse Register Reject Release Remember
    Remove Rename Replace Report Request Reserve Reset Reshape Restart Restore Retry Return Reuse Rewrite
    Round Run Sample Schedule See Seed Select Send Serialize Serve Set Shorten Show Shut Simulate Solve
    Sort Split Start Step Stop Store Style Submit Sum Summarize Take Tell Terminate Track Train Turn Undo
    Unpack Unpickle Update Validate View Wait Wake Warn Write Yield
    """.split()  # noqa: SIM905
)


def iterate_first_words() -> Iterator[tuple[str, str]]:
    """Yield the place and the first word of the docstring of each function that is not a property."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            docstring = ast.get_docstring(node)
            if docstring is None or PROPERTIES & set(map(get_decorator_name, node.decorator_list)):
                continue
            first_word = re.match(r"[\w-]*", docstring)
            assert first_word is not None
            yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", first_word[0]


def get_decorator_name(decorator: ast.expr) -> str:
    """Return the last part of the name of a decorator."""
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    other_words = {place: word for place, word in iterate_first_words() if word not in VERBS}
    assert other_words == {}
