"""Guards what a benchmark starts of Ray with a token of its own; Ray reads it when imported."""

import os
import secrets

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
