"""`python -m dialogue_summarization` is the command `study`."""

import sys

from .commands.cli import main

sys.exit(main())
