"""`python -m dialogue_summarization` is the command `study`."""

import sys

from .cli import main

sys.exit(main())
