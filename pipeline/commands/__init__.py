"""Commands of bmoe-cache in groups; cli.py puts them together."""
