"""Each building block by itself, in a run that the test drives step by step."""
